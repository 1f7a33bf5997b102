//! Changes of safetensors files: header, data, and both so that they still belong together.

use serde_json::{Map, Value, json};

use super::dice::Dice;
use super::{json as json_text, text};

/// Changes the bytes of a safetensors file.
pub fn changed(dice: &mut Dice, bytes: Vec<u8>) -> Vec<u8> {
    let Some((header, data)) = split(&bytes).filter(|_| !dice.chance(15)) else {
        return text::changed(dice, bytes, "");
    };
    match dice.below(4) {
        0 => joined(&json_text::changed(dice, &serde_json::to_vec(&header).unwrap(), KEYS), &data),
        1 => {
            let length = text::number(dice).parse::<u64>().unwrap_or(u64::MAX);
            [&length.to_le_bytes(), &bytes[8..]].concat()
        }
        2 => joined(&serde_json::to_vec(&header).unwrap(), &numbers_changed(dice, data)),
        _ => tensors_changed(dice, &header, &data),
    }
}

const KEYS: &str = "__metadata__¦dtype¦shape¦data_offsets¦weight";

fn split(bytes: &[u8]) -> Option<(Map<String, Value>, Vec<u8>)> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let (header, data) = rest.split_at_checked(u64::from_le_bytes(*length) as usize)?;
    Some((serde_json::from_slice(header).ok()?, data.to_vec()))
}

fn joined(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// Puts numbers that are none, or far too large, in the place of some.
fn numbers_changed(dice: &mut Dice, mut data: Vec<u8>) -> Vec<u8> {
    let value = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 0.0, 1e-45, 1e30][dice.below(7)];
    let all = dice.chance(20);
    let range = if all { 0..data.len() } else { dice.range(data.len()) };
    for number in data[range].chunks_exact_mut(4) {
        number.copy_from_slice(&value.to_le_bytes());
    }
    data
}

/// Drops, doubles, renames, reshapes or retypes whole tensors; the file stays one that can be read.
fn tensors_changed(dice: &mut Dice, header: &Map<String, Value>, data: &[u8]) -> Vec<u8> {
    let mut tensors: Vec<(String, Value, Vec<u8>)> = Vec::new();
    for (name, entry) in header.iter().filter(|(name, _)| *name != "__metadata__") {
        let offset = |i: usize| entry["data_offsets"][i].as_u64().unwrap_or(0) as usize;
        let bytes = data.get(offset(0)..offset(1)).unwrap_or_default();
        tensors.push((name.clone(), entry.clone(), bytes.to_vec()));
    }
    for _ in 0..1 + dice.below(2) {
        let (one, other) = (dice.below(tensors.len()), dice.below(tensors.len()));
        if tensors.is_empty() {
            break;
        }
        match dice.below(8) {
            0 => drop(tensors.remove(one)),
            1 => {
                let copy = tensors[one].clone();
                tensors.push((format!("{}.copy", copy.0), copy.1, copy.2));
            }
            2 => tensors[one].0 = tensors[other].0.replace("weight", "bias"),
            3 => {
                let shape: Vec<i64> = (0..dice.below(4)).map(|_| dice.below(40) as i64).collect();
                let count: i64 = shape.iter().product();
                tensors[one].2 = dice.bytes(4 * count as usize);
                tensors[one].1 = json!({"dtype": "F32", "shape": shape});
            }
            4 => {
                if let Value::Array(shape) = &mut tensors[one].1["shape"] {
                    shape.reverse();
                }
            }
            5 => {
                let types = ["F64", "F16", "BF16", "I8", "U8", "I32", "I64", "BOOL", "F8_E4M3"];
                let size = [8, 2, 2, 1, 1, 4, 8, 1, 1];
                let which = dice.below(types.len());
                let shape = tensors[one].1["shape"].as_array().cloned().unwrap_or_default();
                let count: u64 = shape.iter().filter_map(Value::as_u64).product();
                tensors[one].1["dtype"] = json!(types[which]);
                tensors[one].2 = dice.bytes(count as usize * size[which]);
            }
            6 => {
                let name = tensors[one].0.clone();
                tensors[one].0 = std::mem::replace(&mut tensors[other].0, name);
            }
            _ => {
                tensors[one].0 =
                    String::from_utf8_lossy(&text::changed(dice, tensors[one].0.clone().into(), ".")).into()
            }
        }
    }
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, mut entry, bytes) in tensors {
        entry["data_offsets"] = json!([data.len(), data.len() + bytes.len()]);
        header.insert(name, entry);
        data.extend(bytes);
    }
    joined(&serde_json::to_vec(&header).unwrap(), &data)
}
