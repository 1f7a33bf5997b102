//! The processes of a command as their launcher tells each: by the variables of `torchrun`, Open MPI or Slurm.

use std::os::fd::RawFd;
use std::time::Duration;

use crate::fault::{Result, usage};
use crate::session::launch::LISTENER;
use crate::torch::world::{Rendezvous, World};

/// Ports for jobs that were given none: below those that the system gives to connections.
const PORTS: (u64, u64) = (15_000, 15_000);

/// Version that all processes must have.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " with libtorch 2.11.0");

/// Joins the processes that a launcher tells of, if it does, for the command `work`; silence of one for longer than `timeout` ends all.
/// Fails when a process does not come, or differs.
pub fn join(others: Option<Rendezvous>, work: &str, timeout: Duration) -> Result<World> {
    others.map_or_else(|| Ok(World::alone()), |others| World::join(others, VERSION, work, timeout))
}

/// Returns what a launcher tells this process; `None` if there is one process.
/// Fails when its variables are wrong.
pub fn found() -> Result<Option<Rendezvous>> {
    of_variables(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
}

type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// As [`found`], by these variables.
fn of_variables(variable: Variables) -> Result<Option<Rendezvous>> {
    // `mpirun` within a Slurm job passes on Slurm's variables, which then number its daemons.
    for launcher in [torchrun, open_mpi, slurm] {
        if let Some(found) = launcher(variable)? {
            return Ok(Some(found).filter(|found| found.size > 1));
        }
    }
    Ok(None)
}

/// `torchrun`, and whatever sets PyTorch's variables as it does (torch/distributed/run.py, "Environment Variables").
fn torchrun(variable: Variables) -> Result<Option<Rendezvous>> {
    let (Some(_), Some(_)) = (variable("RANK"), variable("WORLD_SIZE")) else { return Ok(None) };
    let attempt = ["TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"].map(variable);
    let place = Place {
        rank: number(variable, "RANK")?.unwrap_or(0),
        size: number(variable, "WORLD_SIZE")?.unwrap_or(1),
        local_rank: number(variable, "LOCAL_RANK")?.unwrap_or(0),
        host: None,
        job: String::new(),
    };
    let found = place.meets(variable)?;
    Ok(Some(Rendezvous {
        is_served: variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True"),
        listener: number(variable, LISTENER)?.and_then(|socket| RawFd::try_from(socket).ok()),
        attempt: attempt.into_iter().flatten().collect::<Vec<_>>().join("/"),
        ..found
    }))
}

/// Open MPI's `mpirun` (its documentation, "Environment variables").
fn open_mpi(variable: Variables) -> Result<Option<Rendezvous>> {
    let Some(rank) = number(variable, "OMPI_COMM_WORLD_RANK")? else { return Ok(None) };
    let size = number(variable, "OMPI_COMM_WORLD_SIZE")?.unwrap_or(1);
    let here = number(variable, "OMPI_COMM_WORLD_LOCAL_SIZE")? == Some(size);
    let jobs = ["PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"].map(variable);
    let place = Place {
        rank,
        size,
        local_rank: number(variable, "OMPI_COMM_WORLD_LOCAL_RANK")?.unwrap_or(0),
        host: here.then(|| "127.0.0.1".to_owned()),
        job: jobs.into_iter().flatten().next().unwrap_or_default(),
    };
    place.meets(variable).map(Some)
}

/// A step of Slurm (`man srun`, "OUTPUT ENVIRONMENT VARIABLES"). A batch script, which is no step of its own, is one process, whatever it
/// may start.
fn slurm(variable: Variables) -> Result<Option<Rendezvous>> {
    let Some(rank) = number(variable, "SLURM_PROCID")? else { return Ok(None) };
    let job = variable("SLURM_JOB_ID").or_else(|| variable("SLURM_JOBID"));
    let step = variable("SLURM_STEP_ID").or_else(|| variable("SLURM_STEPID"));
    let is_step = ["SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "MASTER_ADDR"].map(variable);
    if rank == 0 && job.is_some() && step.is_none() && is_step.iter().all(Option::is_none) {
        return Ok(None);
    }
    let size = number(variable, "SLURM_STEP_NUM_TASKS")?;
    let lists = ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"].map(variable);
    let place = Place {
        rank,
        size: size.or(number(variable, "SLURM_NTASKS")?).unwrap_or(1),
        local_rank: number(variable, "SLURM_LOCALID")?.unwrap_or(0),
        host: lists.into_iter().flatten().next().map(|list| first_host(&list)),
        job: [job, step].into_iter().flatten().collect::<Vec<_>>().join("."),
    };
    place.meets(variable).map(Some)
}

/// What a launcher tells, with what is taken where the address is not given.
struct Place {
    rank: usize,
    size: usize,
    local_rank: usize,
    host: Option<String>,
    /// Name of the job, from which its port is taken.
    job: String,
}

impl Place {
    fn meets(self, variable: Variables) -> Result<Rendezvous> {
        let Self { rank, size, local_rank, host, job } = self;
        if rank >= size {
            let message = format!("this process is rank {rank}, of {size} processes");
            return Err(usage(message).hint("ranks count from 0; check the launcher's variables").into());
        }
        let missing = |name: &str, what: &str| {
            let message = format!("this is rank {rank} of {size} processes, and `{name}` is not set");
            usage(message).hint(format!("set it to {what}"))
        };
        let host = match variable("MASTER_ADDR").or(host) {
            Some(host) => host,
            None if size == 1 => String::new(),
            None => {
                return Err(missing("MASTER_ADDR", "the name or address of the first process's host").into());
            }
        };
        let port = match number(variable, "MASTER_PORT")? {
            Some(port) => {
                u16::try_from(port).map_err(|_| usage(format!("`MASTER_PORT`: {port} is no port")))?
            }
            None if size == 1 => 0,
            None if job.is_empty() => return Err(missing("MASTER_PORT", "a free port of that host").into()),
            None => port_of(&job),
        };
        Ok(Rendezvous {
            rank,
            size,
            local_rank,
            host,
            port,
            is_served: false,
            listener: None,
            attempt: String::new(),
        })
    }
}

/// Returns the port of a job: the same on all hosts, another one for most others.
fn port_of(job: &str) -> u16 {
    let (first, count) = PORTS;
    let drawn = blake3::hash(job.as_bytes()).as_bytes()[..8]
        .iter()
        .fold(0_u64, |all, byte| all << 8 | u64::from(*byte));
    u16::try_from(first + drawn % count).unwrap_or(u16::MAX)
}

/// Returns the first host of Slurm's list, such as `node[03-08,10],gpu1`.
fn first_host(list: &str) -> String {
    let end = list.find([',', '[']).unwrap_or(list.len());
    let (name, rest) = list.split_at(end);
    let Some(inside) = rest.strip_prefix('[') else { return name.to_owned() };
    let (ranges, after) = inside.split_once(']').unwrap_or((inside, ""));
    let first: &str = ranges.split([',', '-']).next().unwrap_or_default();
    let after = after.split(',').next().unwrap_or_default();
    format!("{name}{first}{after}")
}

/// Reads a number.
fn number(variable: Variables, name: &str) -> Result<Option<usize>> {
    let read = |text: String| {
        text.trim().parse().map_err(|_| usage(format!("`{name}` is `{text}`, expected a number")).into())
    };
    variable(name).map(read).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Option<Rendezvous>> {
        let get =
            |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        of_variables(&get)
    }

    fn told(variables: &[(&str, &str)]) -> String {
        format!("{:#}", of(variables).unwrap_err())
    }

    #[test]
    fn a_process_without_a_launcher_is_alone() {
        assert_eq!(of(&[]).unwrap(), None);
        assert_eq!(of(&[("WORLD_SIZE", "4"), ("SLURM_NTASKS", "4")]).unwrap(), None);
        let one = [("RANK", "0"), ("WORLD_SIZE", "1")];
        assert_eq!(of(&one).unwrap(), None);
        let batch_script =
            [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4"), ("SLURM_JOB_ID", "7"), ("SLURM_NODELIST", "a")];
        assert_eq!(of(&batch_script).unwrap(), None);
    }

    #[test]
    fn each_launcher_is_understood() {
        let torchrun = [
            ("RANK", "3"),
            ("WORLD_SIZE", "4"),
            ("LOCAL_RANK", "1"),
            ("MASTER_ADDR", "a"),
            ("MASTER_PORT", "29500"),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ("TORCHELASTIC_RUN_ID", "x"),
            ("TORCHELASTIC_RESTART_COUNT", "2"),
        ];
        let expected = Rendezvous {
            rank: 3,
            size: 4,
            local_rank: 1,
            host: "a".into(),
            port: 29_500,
            is_served: true,
            listener: None,
            attempt: "x/2".into(),
        };
        assert_eq!(of(&torchrun).unwrap(), Some(expected.clone()));
        let step = [
            ("SLURM_PROCID", "5"),
            ("SLURM_NTASKS", "9"),
            ("SLURM_STEP_NUM_TASKS", "8"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_JOB_ID", "77"),
            ("SLURM_STEP_ID", "0"),
            ("SLURM_STEP_NODELIST", "gpu[003-004,9],b"),
        ];
        let found = of(&step).unwrap().unwrap();
        assert_eq!((found.rank, found.size, found.local_rank, found.host.as_str()), (5, 8, 1, "gpu003"));
        assert!((15_000..30_000).contains(&found.port));
        let mpi = [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
            ("PMIX_NAMESPACE", "17"),
            ("SLURM_PROCID", "0"),
        ];
        let found = of(&mpi).unwrap().unwrap();
        assert_eq!((found.rank, found.size, found.host.as_str()), (1, 2, "127.0.0.1"));
        assert_eq!(found.port, port_of("17"));
        // By hand, without a job.
        let by_hand =
            [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "2"), ("MASTER_ADDR", "h"), ("MASTER_PORT", "5")];
        assert_eq!(of(&by_hand).unwrap().map(|found| found.size), Some(2));
    }

    #[test]
    fn the_first_host_of_a_list_is_found() {
        for (list, first) in
            [("a", "a"), ("a,b", "a"), ("n[1-4]", "n1"), ("n[07,9]x,z", "n07x"), ("n-[2]", "n-2")]
        {
            assert_eq!(first_host(list), first, "{list}");
        }
    }

    #[test]
    fn wrong_variables_are_told_by_name() {
        let whole = [("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "1")];
        let with = |name: &str, value: &'static str| {
            told(&whole.map(|(n, v)| if n == name { (n, value) } else { (n, v) }))
        };
        assert_eq!(with("RANK", "2"), "this process is rank 2, of 2 processes");
        assert_eq!(with("RANK", "x"), "`RANK` is `x`, expected a number");
        assert_eq!(with("MASTER_PORT", "70000"), "`MASTER_PORT`: 70000 is no port");
        assert_eq!(told(&whole[..2]), "this is rank 0 of 2 processes, and `MASTER_ADDR` is not set");
        assert_eq!(told(&whole[..3]), "this is rank 0 of 2 processes, and `MASTER_PORT` is not set");
        let mpi = [
            ("OMPI_COMM_WORLD_RANK", "0"),
            ("OMPI_COMM_WORLD_SIZE", "4"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ];
        assert!(told(&mpi).contains("`MASTER_ADDR` is not set"));
    }
}
