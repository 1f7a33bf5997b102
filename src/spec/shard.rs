//! A share of a sweep's runs, for one of several processes.

use std::fmt;
use std::str::FromStr;

/// One of `count` shares of the runs of a sweep, which a process trains before it helps with the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Number of the share, from 1.
    pub index: usize,
    /// Number of shares.
    pub count: usize,
}

impl Shard {
    /// Returns the share of a task of a Slurm array, from the variables that Slurm sets; `None` outside of one.
    pub fn of_slurm(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let number = |name: &str| variable(&format!("SLURM_ARRAY_TASK_{name}"))?.parse::<usize>().ok();
        let (id, least) = (number("ID")?, number("MIN").unwrap_or(0));
        let step = number("STEP").unwrap_or(1).max(1);
        let among = |most: usize| most.saturating_sub(least) / step + 1;
        let count = number("COUNT").or(number("MAX").map(among)).filter(|count| *count > 0)?;
        // Of an uneven list such as 1,3,7 two tasks may get one share: each run is trained once all the same.
        Some(Self { index: id.saturating_sub(least) / step % count + 1, count })
    }

    /// Returns the part of this share that process `rank` of `size` begins with.
    pub fn of_process(self, rank: usize, size: usize) -> Self {
        Self { index: (self.index - 1) * size + rank + 1, count: self.count * size }
    }

    /// Returns the places 0..n of all runs in the order in which this process takes them: its own share, in which neighbours stay
    /// together, then backwards from there, where other processes come last.
    pub fn order(&self, n: usize) -> impl Iterator<Item = usize> + use<> {
        let bound = |share: usize| (n as u128 * share as u128 / self.count as u128) as usize;
        let (start, end) = (bound(self.index - 1), bound(self.index));
        (start..end).chain((0..start).rev()).chain((end..n).rev())
    }
}

impl Default for Shard {
    fn default() -> Self {
        Self { index: 1, count: 1 }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match parts {
            Some((index, count)) if (1..=count).contains(&index) => Ok(Self { index, count }),
            Some((_, count @ 1..)) => Err(format!("expected a share from 1/{count} to {count}/{count}")),
            _ => Err("expected a share I/N such as `3/16`, with I from 1 to N".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_read_and_one_out_of_range_is_refused() {
        assert_eq!("3/16".parse(), Ok(Shard { index: 3, count: 16 }));
        assert_eq!("3/16".parse::<Shard>().unwrap().to_string(), "3/16");
        let parts = [0, 1, 2].map(|rank| Shard { index: 2, count: 2 }.of_process(rank, 3).to_string());
        assert_eq!(parts, ["4/6", "5/6", "6/6"]);
        assert_eq!("17/16".parse::<Shard>().unwrap_err(), "expected a share from 1/16 to 16/16");
        assert_eq!("0/16".parse::<Shard>().unwrap_err(), "expected a share from 1/16 to 16/16");
        for wrong in ["", "3", "3/0", "-1/4", "a/b", "1/2/3", "99999999999999999999999/2"] {
            let error = wrong.parse::<Shard>().unwrap_err();
            assert!(error.starts_with("expected a share I/N such as `3/16`"), "{wrong}: {error}");
        }
    }

    #[test]
    fn shares_cover_all_runs_once_and_each_order_has_them_all() {
        for (n, count) in [(0, 1), (1, 1), (10, 3), (270, 16), (2, 5)] {
            let shares = (1..=count).map(|index| Shard { index, count });
            let orders: Vec<Vec<usize>> = shares.map(|shard| shard.order(n).collect()).collect();
            for order in &orders {
                let mut sorted = order.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, (0..n).collect::<Vec<_>>());
            }
            let firsts: Vec<usize> = orders.iter().filter_map(|order| order.first().copied()).collect();
            assert_eq!(firsts.len(), if n > 0 { count } else { 0 });
        }
        assert_eq!(Shard { index: 2, count: 3 }.order(9).collect::<Vec<_>>(), [3, 4, 5, 2, 1, 0, 8, 7, 6]);
    }

    #[test]
    fn a_task_of_a_slurm_array_knows_its_share() {
        let of = |variables: &[(&str, &str)]| {
            let found = |name: &str| {
                let name = name.strip_prefix("SLURM_ARRAY_TASK_")?;
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            };
            Shard::of_slurm(found).map(|shard| shard.to_string())
        };
        let array = [("MIN", "1"), ("MAX", "16"), ("STEP", "1"), ("COUNT", "16")];
        assert_eq!(of(&[&array[..], &[("ID", "3")]].concat()), Some("3/16".into()));
        assert_eq!(of(&[("ID", "0"), ("MIN", "0"), ("MAX", "3"), ("COUNT", "4")]), Some("1/4".into()));
        assert_eq!(of(&[("ID", "14"), ("MIN", "10"), ("MAX", "18"), ("STEP", "4")]), Some("2/3".into()));
        assert_eq!(of(&[("ID", "7"), ("MIN", "1"), ("MAX", "7"), ("COUNT", "3")]), Some("1/3".into()));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("ID", "x"), ("COUNT", "4")]), None);
        assert_eq!(of(&[("ID", "3")]), None);
    }
}
