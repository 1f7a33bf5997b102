//! The decompositions against scikit-learn and NumPy (fixture of scripts/reference/svd.py).

use loraxs::adapters::svd::{Factors, exact, randomized};
use loraxs::spec::Spectrum;
use safetensors::SafeTensors;
use tch::{Kind, Tensor};

use crate::support::device;

/// Relative to the largest value.
const TOLERANCE: f64 = 1e-5;

const CASES: [&str; 6] = ["wide", "tall", "square", "full_rank", "low_rank_and_noise", "decaying"];

struct Fixture(Vec<u8>);

impl Fixture {
    fn open() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/fixtures/svd.safetensors");
        Self(std::fs::read(path).unwrap())
    }

    fn get(&self, name: &str) -> Tensor {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap();
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        Tensor::f_from_data_size(view.data(), &shape, Kind::Float).unwrap().to_device(device())
    }

    /// A, B and S of `case` by `method`.
    fn factors(&self, case: &str, method: &str) -> [Tensor; 3] {
        ["A", "B", "S"].map(|factor| self.get(&format!("{case}.{method}.{factor}")))
    }
}

/// The largest difference relative to the largest expected value.
fn distance(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let difference = (found - expected).abs().max().double_value(&[]);
    difference / expected.abs().max().double_value(&[])
}

/// Turns the expected directions to the signs of `found`, then compares factors and their product.
fn assert_agree(case: &str, found: &Factors, [a, b, s]: [Tensor; 3], tolerance: f64) {
    let sign = (&found.b * &b).sum_dim_intlist(0i64, true, Kind::Float).sign(); // [1, r]
    let distances = [
        ("A", distance(&found.a, &(&a * sign.transpose(0, 1)))),
        ("B", distance(&found.b, &(&b * &sign))),
        ("S", distance(&found.s, &s)),
        ("B A", distance(&found.b.matmul(&found.a), &b.matmul(&a))),
    ];
    for (factor, distance) in distances {
        assert!(distance < tolerance, "{case}: {factor} is off by {distance:e}");
    }
}

fn assert_randomized_factors_agree(method: &str, tolerance: f64) {
    let fixture = Fixture::open();
    for case in CASES {
        let expected = fixture.factors(case, method);
        let found = randomized(&fixture.get(&format!("{case}.W")), expected[2].size()[0], 10, 42).unwrap();
        assert_agree(case, &found, expected, tolerance);
    }
}

#[test]
fn randomized_factors_are_those_of_scikit_learn_also_where_they_have_not_converged() {
    assert_randomized_factors_agree("double", TOLERANCE);
}

/// Looser, because scikit-learn's own single-precision rounding moves vectors of close singular values.
#[test]
fn randomized_factors_are_near_those_that_scikit_learn_computes_in_single_precision() {
    assert_randomized_factors_agree("single", 5.0 * TOLERANCE);
}

#[test]
fn exact_factors_are_those_of_numpy() {
    let fixture = Fixture::open();
    for case in CASES {
        let expected = fixture.factors(case, "exact");
        let weight = fixture.get(&format!("{case}.W"));
        let found = exact(&weight, expected[2].size()[0], Spectrum::Top, 42).unwrap();
        assert_agree(case, &found, expected, TOLERANCE);
    }
}

#[test]
fn the_fixture_tells_the_randomized_factors_from_the_exact_ones() {
    let fixture = Fixture::open();
    let [_, randomized, _] = fixture.factors("wide", "double");
    let [_, exact, _] = fixture.factors("wide", "exact");
    assert!(distance(&randomized.abs(), &exact.abs()) > 100.0 * TOLERANCE);
}
