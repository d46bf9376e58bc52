//! Processes under test: started, watched, ended and waited for.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::wait_for;

/// Printed by `serve-decode` in front of its address.
const LISTENING: &str = "listening on ";

/// A process, killed when dropped.
pub struct Running {
    child: Child,
    stdout: Gathered,
    stderr: Gathered,
}

/// One output stream of a process, read to its end by a thread of its own.
struct Gathered {
    text: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Gathered {
    fn start(stream: Option<impl Read + Send + 'static>) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let reader = stream.map(|stream| {
            let text = Arc::clone(&text);
            std::thread::spawn(move || {
                let mut lines = BufReader::new(stream);
                let mut line = Vec::new();
                while lines.read_until(b'\n', &mut line).unwrap_or(0) > 0 {
                    text.lock()
                        .unwrap()
                        .push_str(&String::from_utf8_lossy(&line));
                    line.clear();
                }
            })
        });
        Self { text, reader }
    }

    fn so_far(&self) -> String {
        self.text.lock().unwrap().clone()
    }

    fn wait(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        self.so_far()
    }
}

impl Running {
    /// Starts a process without stdin, unless the command has one, and with captured output.
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self::of(command.spawn().unwrap())
    }

    /// Takes over a process that was started otherwise; streams that are no pipes stay unread.
    pub fn of(mut child: Child) -> Self {
        let stdout = Gathered::start(child.stdout.take());
        let stderr = Gathered::start(child.stderr.take());
        Self {
            child,
            stdout,
            stderr,
        }
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What came on stdout up to now.
    pub fn stdout(&self) -> String {
        self.stdout.so_far()
    }

    /// What came on stderr up to now.
    pub fn stderr(&self) -> String {
        self.stderr.so_far()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Sends a signal by name: `INT`, `TERM`, `KILL`.
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.id());
        let status = Command::new("sh").args(["-c", &kill]).status().unwrap();
        assert!(status.success(), "{kill}");
    }

    /// Ids of its living children.
    pub fn children(&self) -> Vec<u32> {
        let file = format!("/proc/{0}/task/{0}/children", self.id());
        let text = std::fs::read_to_string(file).unwrap_or_default();
        text.split_whitespace()
            .map(|id| id.parse().unwrap())
            .collect()
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Ended {
        let status = wait_for("the end of a process", || self.child.try_wait().unwrap());
        Ended {
            status,
            stdout: self.stdout.wait(),
            stderr: self.stderr.wait(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that has ended.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub status: ExitStatus,
    /// All of stdout.
    pub stdout: String,
    /// All of stderr.
    pub stderr: String,
}

impl Ended {
    /// Runs a command to its end.
    pub fn of(command: Command) -> Self {
        Running::start(command).wait()
    }

    /// Demands an exit code, and that nothing panicked on the way.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{self}");
        self.did_not_panic()
    }

    /// Demands an exit code, and an error line with these parts.
    #[track_caller]
    pub fn fails(self, code: i32, parts: &[&str]) -> Self {
        let ended = self.exits(code);
        let error = match ended.stderr.find("error: ") {
            Some(start) => &ended.stderr[start..],
            None => panic!("no error line: {ended}"),
        };
        for part in parts {
            assert!(error.contains(part), "no {part:?} in {ended}");
        }
        ended
    }

    /// Demands the end that Ctrl-C gives a program: code 130, or by the signal itself, which a
    /// shell shows as 130.
    #[track_caller]
    pub fn was_interrupted(self) -> Self {
        let by_signal = self.status.signal() == Some(2);
        assert!(by_signal || self.status.code() == Some(130), "{self}");
        self.did_not_panic()
    }

    #[track_caller]
    fn did_not_panic(self) -> Self {
        let panicked = self.stderr.contains("panicked") || self.stdout.contains("panicked");
        assert!(!panicked, "{self}");
        self
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}\n--- stdout\n{}\n--- stderr\n{}",
            self.status, self.stdout, self.stderr
        )
    }
}

/// A `serve-decode` that listens.
pub struct DecodeNode {
    /// The process.
    pub process: Running,
    /// Where it listens.
    pub address: String,
}

impl DecodeNode {
    /// Starts the command and waits until it listens.
    pub fn start(command: Command) -> Self {
        let mut process = Running::start(command);
        let address = wait_for("the address of serve-decode", || {
            let stdout = process.stdout();
            let line = stdout.lines().find_map(|l| l.strip_prefix(LISTENING));
            if line.is_none() && process.has_ended() {
                panic!(
                    "serve-decode ended: {}{}",
                    process.stdout(),
                    process.stderr()
                );
            }
            line.map(str::to_owned)
        });
        Self { process, address }
    }

    /// Waits for a line of its output.
    pub fn prints(&self, part: &str) {
        wait_for(part, || self.process.stdout().contains(part).then_some(()));
    }

    /// Stops it as an operator would and demands that it goes well.
    #[track_caller]
    pub fn stop(self) -> Ended {
        self.process.signal("TERM");
        self.process.wait().exits(0)
    }
}
