//! A choice of devices, as the command line gives it.

use std::fmt;
use std::str::FromStr;

/// The devices to compute on, as the command line names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first CUDA device if there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA devices of these numbers, each once, at least one: the layers of a model lie on them in this order.
    Cuda(Vec<usize>),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => return Ok(Self::Auto),
            "cpu" => return Ok(Self::Cpu),
            _ => {}
        }
        let mut found = Vec::new();
        for name in text.split(',').map(str::trim) {
            let number = match (name, name.strip_prefix("cuda:").map(str::parse)) {
                ("auto" | "cpu", _) => {
                    return Err(format!(
                        "`{name}` stands alone: only CUDA devices share a model, as `cuda:0,cuda:1`"
                    ));
                }
                ("cuda", _) => 0,
                (_, Some(Ok(number))) => number,
                _ => {
                    return Err("expected `auto`, `cpu`, `cuda`, `cuda:N` or a list such as `cuda:0,cuda:1`"
                        .to_owned());
                }
            };
            if found.contains(&number) {
                return Err(format!("`cuda:{number}` is named twice"));
            }
            found.push(number);
        }
        Ok(Self::Cuda(found))
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(numbers) => {
                let names: Vec<String> = numbers.iter().map(|number| format!("cuda:{number}")).collect();
                f.write_str(&names.join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_read_and_print_alike() {
        for text in ["auto", "cpu", "cuda:0", "cuda:7", "cuda:0,cuda:1", "cuda:3,cuda:1,cuda:2"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(vec![0])));
        assert_eq!("cuda:1, cuda:0".parse(), Ok(DeviceChoice::Cuda(vec![1, 0])));
        for (wrong, told) in [
            ("", "expected"),
            ("gpu", "expected"),
            ("cuda:", "expected"),
            ("cuda:x", "expected"),
            ("cuda:-1", "expected"),
            ("CPU", "expected"),
            ("cuda:0,", "expected"),
            ("cuda:0,1", "expected"),
            ("cuda:0,cpu", "`cpu` stands alone"),
            ("auto,cuda:1", "`auto` stands alone"),
            ("cuda:1,cuda:0,cuda:1", "`cuda:1` is named twice"),
            ("cuda,cuda:0", "`cuda:0` is named twice"),
        ] {
            let found = wrong.parse::<DeviceChoice>().unwrap_err();
            assert!(found.contains(told), "{wrong}: {found}");
        }
    }
}
