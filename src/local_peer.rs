//! The decode node that `split` starts for itself: a child process on loopback.
//!
//! It has a process group of its own, so that Ctrl-C reaches only the parent, which then can
//! finish its record; and it ends when its stdin closes, which happens however the parent ends.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::cores::CoreList;
use crate::failure::Failure;
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

impl LocalPeer {
    /// Starts the child; it loads its model while this process goes on. Without `cores` it runs on
    /// those of this process.
    pub fn start(
        model: &Path,
        weights: Option<WeightsFormat>,
        threads: usize,
        cores: Option<&CoreList>,
        congestion_control: Option<&str>,
    ) -> Result<Self, Failure> {
        let mut arguments = vec![OsString::from("--model"), model.into()];
        arguments.extend(["--threads".into(), threads.to_string().into()]);
        if let Some(cores) = cores {
            arguments.extend(["--cores".into(), cores.to_string().into()]);
        }
        if let Some(weights) = weights.and_then(|w| w.to_possible_value()) {
            arguments.extend(["--weights".into(), weights.get_name().into()]);
        }
        Self::spawn(&arguments, congestion_control)
    }

    /// Starts a child that has no model and measures the link.
    pub fn start_for_link(congestion_control: Option<&str>) -> Result<Self, Failure> {
        Self::spawn(&["--link-only".into()], congestion_control)
    }

    fn spawn(arguments: &[OsString], congestion_control: Option<&str>) -> Result<Self, Failure> {
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
        if let Some(name) = congestion_control {
            command.args(["--congestion-control", name]);
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
