//! NumPy's legacy stream of normal numbers, `RandomState(seed).normal()`, number for number.
//!
//! scikit-learn draws the start of its randomised SVD from this stream; where ten iterations have not
//! converged, only the same start gives the same factors. NumPy keeps the stream frozen (NEP 19).

use rand_mt::Mt;

/// The stream of `numpy.random.RandomState(seed).normal(size = …)`: standard normal numbers.
#[derive(Debug, Clone)]
pub struct LegacyNormal {
    words: Mt,
    /// Number left over from the last pair that the polar method made.
    spare: Option<f64>,
}

impl LegacyNormal {
    /// Starts the stream from its beginning. NumPy accepts seeds of 32 bits.
    pub fn new(seed: u32) -> Self {
        Self { words: Mt::new(seed), spare: None }
    }

    /// Draws a uniform number in [0, 1) with 53 random bits, from two words of the generator.
    fn uniform(&mut self) -> f64 {
        let high = self.words.next_u32() >> 5; // 27 bits
        let low = self.words.next_u32() >> 6; // 26 bits
        (f64::from(high) * 67_108_864.0 + f64::from(low)) / 9_007_199_254_740_992.0
    }

    /// Draws the next standard normal number, by Marsaglia's polar method.
    pub fn sample(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        loop {
            let x = 2.0 * self.uniform() - 1.0;
            let y = 2.0 * self.uniform() - 1.0;
            let square = x * x + y * y;
            if square < 1.0 && square != 0.0 {
                let factor = (-2.0 * square.ln() / square).sqrt();
                // The second of the pair comes first, as in NumPy.
                self.spare = Some(factor * x);
                return factor * y;
            }
        }
    }

    /// Draws the next `count` numbers, rounded to single precision as scikit-learn does for fp32 matrices.
    pub fn take_f32(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.sample() as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Printed by NumPy 2.4.6: `[repr(float(x)) for x in numpy.random.RandomState(seed).normal(size=n)]`.
    #[test]
    fn first_numbers_are_those_of_numpy() {
        let expected = [
            0.4967141530112327, -0.13826430117118466, 0.6476885381006925, 1.5230298564080254,
            -0.23415337472333597, -0.23413695694918055, 1.5792128155073915,
        ];
        let mut stream = LegacyNormal::new(42);
        for value in expected {
            assert!((stream.sample() - value).abs() <= 1e-15 * value.abs());
        }
    }

    #[test]
    fn numbers_past_one_refill_of_the_generator_are_those_of_numpy() {
        let mut stream = LegacyNormal::new(4_294_967_295);
        let numbers: Vec<f64> = (0..5000).map(|_| stream.sample()).collect();
        let sum: f64 = numbers.iter().sum();
        assert!((numbers[4999] - 0.32197805636863175).abs() < 1e-14);
        assert!((sum - 95.90556323698658).abs() < 1e-10);
    }
}
