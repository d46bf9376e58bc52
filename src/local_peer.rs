//! The decode node that `split` starts for itself: a child process on loopback.
//!
//! It has a process group of its own, so that Ctrl-C reaches only the parent, which then can
//! finish its record; and it ends when its stdin closes, which happens however the parent ends.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::cli::TlsArgs;
use crate::cores::{self, CoreList};
use crate::failure::Failure;
use crate::model::device::DeviceChoice;
use crate::model::weights::WeightsFormat;

/// Printed by `serve-decode` in front of its address.
pub const LISTENING: &str = "listening on ";

/// A configuration file that is always there and always empty.
const NO_FILE: &str = "/dev/null";

/// Longest wait for the child to load its model and listen.
const START_TIMEOUT: Duration = Duration::from_secs(300);

/// Longest wait for the child to end by itself.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// A decode node of our own.
pub struct LocalPeer {
    child: Child,
    /// Open as long as the child shall live.
    stdin: Option<ChildStdin>,
    address: std::sync::mpsc::Receiver<String>,
}

/// Cores for the network's threads of this process and of the decode node that it starts: `given`
/// or one that `ours` has, and one apart from it that `theirs` has; both lists are this process's
/// cores where they are not given. None for either where no two are apart.
///
/// Left to itself, the scheduler often puts both ends of a transfer on one core, the other core idle:
/// they take turns of a millisecond, and 24 MB at 25 Gbit/s took 9.6 to 12.7 ms for 7.8 (scheduler's
/// trace of two cores).
pub fn network_cores(
    given: Option<&CoreList>,
    ours: Option<&CoreList>,
    theirs: Option<&CoreList>,
) -> (Option<CoreList>, Option<CoreList>) {
    let here = cores::current();
    let ours = ours.or(here.as_ref());
    let network = given.cloned().or_else(|| ours?.first());
    let peers = (network.as_ref()).and_then(|network| theirs.or(ours)?.one_apart_from(network));
    match peers {
        Some(_) => (network, peers),
        None => (given.cloned(), None),
    }
}

/// What a decode node on this machine is started with, beside its model.
#[derive(Clone, Copy, Debug, Default)]
pub struct Placing<'a> {
    /// Cores of the process; without, those of this one.
    pub cores: Option<&'a CoreList>,
    /// What computes there.
    pub device: DeviceChoice,
    /// Cores of its network's thread.
    pub network_cores: Option<&'a CoreList>,
    /// Congestion control to ask for.
    pub congestion_control: Option<&'a str>,
    /// Its identity and its peer, where TLS is spoken.
    pub tls: Option<&'a TlsArgs>,
}

impl LocalPeer {
    /// Starts the child; it loads its model while this process goes on.
    pub fn start(
        model: &[OsString],
        weights: Option<WeightsFormat>,
        threads: usize,
        placing: Placing<'_>,
    ) -> Result<Self, Failure> {
        let mut arguments = model.to_vec();
        arguments.extend(["--threads".into(), threads.to_string().into()]);
        if let Some(cores) = placing.cores {
            arguments.extend(["--cores".into(), cores.to_string().into()]);
        }
        arguments.extend(["--device".into(), placing.device.to_string().into()]);
        if let Some(weights) = weights.and_then(|w| w.to_possible_value()) {
            arguments.extend(["--weights".into(), weights.get_name().into()]);
        }
        Self::spawn(&arguments, placing)
    }

    /// Starts a child that has no model and measures the link.
    pub fn start_for_link(placing: Placing<'_>) -> Result<Self, Failure> {
        Self::spawn(&["--link-only".into()], placing)
    }

    fn spawn(arguments: &[OsString], placing: Placing<'_>) -> Result<Self, Failure> {
        let cannot = |why: String| {
            Failure::LocalPeer(format!("cannot start a decode node on this machine: {why}"))
        };
        let program = std::env::current_exe().map_err(|e| cannot(e.to_string()))?;
        let mut command = Command::new(program);
        command
            .args([
                "serve-decode",
                "--listen",
                "127.0.0.1:0",
                "--quiet",
                "--until-stdin-closes",
            ])
            .args(arguments)
            // Settings come from flags alone, whatever the user's files and variables say.
            .args(["--config", NO_FILE])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("DISAGG_") {
                command.env_remove(name);
            }
        }
        if let Some(name) = placing.congestion_control {
            command.args(["--congestion-control", name]);
        }
        if let Some(TlsArgs {
            tls_identity: Some(folder),
            tls_peer: Some(peer),
        }) = placing.tls
        {
            command.arg("--tls-identity").arg(folder);
            command.args(["--tls-peer", peer]);
        }
        if let Some(cores) = placing.network_cores {
            command.args(["--network-cores", &cores.to_string()]);
        }
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().map_err(|e| cannot(e.to_string()))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take();
        let (found, address) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let lines = stdout
                .map(|s| BufReader::new(s).lines())
                .into_iter()
                .flatten();
            for line in lines.map_while(Result::ok) {
                if let Some(address) = line.strip_prefix(LISTENING) {
                    let _ = found.send(address.to_string());
                }
            }
        });
        Ok(Self {
            child,
            stdin,
            address,
        })
    }

    /// Waits until the child listens and gives its address.
    pub fn address(&mut self) -> Result<String, Failure> {
        self.address.recv_timeout(START_TIMEOUT).map_err(|_| {
            let how = match self.child.try_wait() {
                Ok(Some(status)) => format!("it ended with {status}"),
                _ => format!("it did not listen within {} s", START_TIMEOUT.as_secs()),
            };
            Failure::LocalPeer(format!(
                "the decode node on this machine did not start, {how}: run \
                 `disagg-bench serve-decode` by hand to see why"
            ))
        })
    }
}

impl Drop for LocalPeer {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let deadline = Instant::now() + STOP_TIMEOUT;
        while Instant::now() < deadline {
            if let Ok(Some(_)) | Err(_) = self.child.try_wait() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
