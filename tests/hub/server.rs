//! A hub on loopback: one repository, `org/tiny`, as the real one serves it, with large files behind
//! a redirect to a second address, and the troubles that a test asks for.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use sha1::Sha1;
use sha2::{Digest, Sha256};

pub const REPOSITORY: &str = "org/tiny";

/// What the server does wrong.
#[derive(Clone, Default)]
pub struct Trouble {
    /// Status and further headers for questions whose path has this in it; the body is a page.
    pub refuse: Option<(&'static str, u16, &'static str)>,
    /// Large files end after so many bytes of an answer, so many times.
    pub cut: Option<(usize, usize)>,
    /// Whole files, whatever range was asked for.
    pub has_no_ranges: bool,
    /// Status and further headers where the rest of a large file is asked for.
    pub refuse_rest: Option<(u16, &'static str)>,
    /// The list has no sizes.
    pub has_no_sizes: bool,
    /// This file has another first byte.
    pub flips_a_byte_of: Option<&'static str>,
    /// Large files have more bytes than was said.
    pub sends_more: bool,
    /// In place of the tag of large files.
    pub tag: Option<&'static str>,
    /// In place of the commit.
    pub commit: Option<&'static str>,
}

/// A question that came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
    /// At the address of large files.
    pub at_store: bool,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    trouble: Trouble,
    asked: Vec<Asked>,
}

impl State {
    /// Changes with the files.
    fn commit(&self) -> String {
        let mut hasher = Sha256::new();
        for (name, content) in &self.files {
            hasher.update(name);
            hasher.update(content);
        }
        hex(hasher)[..40].to_owned()
    }

    /// A content, or what its trouble makes of it.
    fn sent(&self, file: &str, content: &[u8]) -> Vec<u8> {
        let mut sent = content.to_vec();
        if self.trouble.flips_a_byte_of == Some(file) {
            sent[0] ^= 1;
        }
        sent
    }
}

pub struct Hub {
    /// For HF_ENDPOINT.
    pub endpoint: String,
    state: Arc<Mutex<State>>,
    gate: Arc<Mutex<()>>,
    is_over: Arc<AtomicBool>,
    threads: Vec<(String, JoinHandle<()>)>,
}

impl Hub {
    pub fn serving(files: &[(&str, &[u8])]) -> Self {
        let state = State {
            files: (files.iter())
                .map(|(name, content)| (name.to_string(), content.to_vec()))
                .collect(),
            ..State::default()
        };
        let state = Arc::new(Mutex::new(state));
        let gate = Arc::new(Mutex::new(()));
        let is_over = Arc::new(AtomicBool::new(false));
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [hub, store] = [0, 1].map(|i: usize| listeners[i].local_addr().unwrap().to_string());
        let threads = listeners.into_iter().enumerate().map(|(number, listener)| {
            let address = listener.local_addr().unwrap().to_string();
            let answering = Answering {
                state: Arc::clone(&state),
                gate: Arc::clone(&gate),
                store: store.clone(),
                is_store: number == 1,
            };
            let is_over = Arc::clone(&is_over);
            let thread = std::thread::spawn(move || {
                for stream in listener.incoming() {
                    if is_over.load(Ordering::SeqCst) {
                        break;
                    }
                    // One that goes away in the middle is the test's own doing.
                    let _ = answering.one(stream.unwrap());
                }
            });
            (address, thread)
        });
        Self {
            endpoint: format!("http://{hub}"),
            threads: threads.collect(),
            state,
            gate,
            is_over,
        }
    }

    /// Large files are not sent until this is dropped.
    pub fn hold(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().unwrap()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn commit(&self) -> String {
        self.state().commit()
    }

    pub fn set(&self, trouble: Trouble) {
        self.state().trouble = trouble;
    }

    pub fn put(&self, name: &str, content: &[u8]) {
        self.state().files.insert(name.to_owned(), content.to_vec());
    }

    /// All that came since the last time.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state().asked)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        for (address, thread) in self.threads.drain(..) {
            // Wakes the thread, which then sees that it is over.
            let _ = TcpStream::connect(address);
            let _ = thread.join();
        }
    }
}

struct Answering {
    state: Arc<Mutex<State>>,
    gate: Arc<Mutex<()>>,
    store: String,
    is_store: bool,
}

impl Answering {
    fn one(&self, stream: TcpStream) -> std::io::Result<()> {
        let Some(asked) = self.read(&stream)? else {
            return Ok(());
        };
        if self.is_store {
            // A test that failed while it held the gate is over.
            drop(self.gate.lock());
        }
        let mut state = self.state.lock().unwrap();
        state.asked.push(asked.clone());
        let answer = match state.trouble.refuse {
            Some((part, status, headers)) if asked.path.contains(part) => {
                let page = b"<html>words</html>".to_vec();
                Answer::new(status, headers.to_owned(), page)
            }
            _ if self.is_store => large(&asked, &mut state),
            _ => self.of_hub(&asked, &state),
        };
        drop(state);
        answer.write(stream, asked.method == "HEAD")
    }

    fn read(&self, stream: &TcpStream) -> std::io::Result<Option<Asked>> {
        let mut lines = BufReader::new(stream).lines();
        let Some(first) = lines.next().transpose()? else {
            return Ok(None);
        };
        let mut words = first.split(' ').map(str::to_owned);
        let mut asked = Asked {
            method: words.next().unwrap(),
            path: words.next().unwrap(),
            range: None,
            authorization: None,
            at_store: self.is_store,
        };
        for line in lines {
            let line = line?;
            let Some((name, value)) = line.split_once(": ") else {
                break;
            };
            match &name.to_ascii_lowercase()[..] {
                "range" => asked.range = Some(value.to_owned()),
                "authorization" => asked.authorization = Some(value.to_owned()),
                _ => {}
            }
        }
        Ok(Some(asked))
    }

    fn of_hub(&self, asked: &Asked, state: &State) -> Answer {
        let commit = state.commit();
        if let Some((before, after)) = asked.path.split_once("/org/renamed/") {
            let headers = format!("Location: {before}/org/tiny/{after}\r\n");
            return Answer::new(307, headers, Vec::new());
        }
        if let Some(question) = (asked.path).strip_prefix("/api/models/org/tiny/revision/") {
            let (revision, query) = question.split_once('?').unwrap_or((question, ""));
            let has_sizes = query == "blobs=true" && !state.trouble.has_no_sizes;
            if ![&commit[..], "main", "refs%2Fpr%2F1"].contains(&revision) {
                let code = "X-Error-Code: RevisionNotFound\r\n".to_owned();
                return Answer::new(404, code, Vec::new());
            }
            let files = state.files.iter().map(|(name, content)| {
                let size = match has_sizes {
                    true => format!(r#","size":{}"#, content.len()),
                    false => String::new(),
                };
                format!(r#"{{"rfilename":"{name}"{size}}}"#)
            });
            let files: Vec<String> = files.collect();
            let commit = state.trouble.commit.unwrap_or(&commit);
            let text = format!(
                r#"{{"id":"{REPOSITORY}","sha":"{commit}","siblings":[{}]}}"#,
                files.join(",")
            );
            return Answer::new(200, String::new(), text.into_bytes());
        }
        let file = (asked.path.strip_prefix("/org/tiny/resolve/"))
            .and_then(|path| path.split_once('/'))
            .filter(|(revision, _)| [&commit[..], "main"].contains(revision))
            .map(|(_, file)| file);
        let Some((file, content)) = file.and_then(|file| Some((file, state.files.get(file)?)))
        else {
            let code = "X-Error-Code: EntryNotFound\r\n".to_owned();
            return Answer::new(404, code, Vec::new());
        };
        let tag = tag(file, content);
        match is_large(file) {
            true => {
                let headers = format!(
                    "Location: http://{}/{file}\r\nX-Repo-Commit: {commit}\r\nX-Linked-Etag: \
                     \"{}\"\r\nX-Linked-Size: {}\r\nETag: \"of the redirect\"\r\n",
                    self.store,
                    state.trouble.tag.unwrap_or(&tag),
                    content.len()
                );
                Answer::new(302, headers, b"Found".to_vec())
            }
            false => {
                let headers = format!("ETag: \"{tag}\"\r\nX-Repo-Commit: {commit}\r\n");
                Answer::new(200, headers, state.sent(file, content))
            }
        }
    }
}

/// A large file, or what its trouble makes of it.
fn large(asked: &Asked, state: &mut State) -> Answer {
    let Some(content) = state.files.get(&asked.path[1..]) else {
        return Answer::new(404, String::new(), Vec::new());
    };
    let mut content = state.sent(&asked.path[1..], content);
    if state.trouble.sends_more {
        content.push(0);
    }
    let whole = content.len();
    let start = asked
        .range
        .as_ref()
        .filter(|_| !state.trouble.has_no_ranges);
    let start = start.map(|range| {
        let start = range.strip_prefix("bytes=").unwrap().strip_suffix('-');
        start.unwrap().parse::<usize>().unwrap()
    });
    if let (Some(_), Some((status, headers))) = (start, state.trouble.refuse_rest) {
        return Answer::new(status, headers.to_owned(), Vec::new());
    }
    let mut answer = match start {
        None => Answer::new(200, String::new(), content),
        Some(start) => {
            let headers = format!("Content-Range: bytes {start}-{}/{whole}\r\n", whole - 1);
            Answer::new(206, headers, content[start..].to_vec())
        }
    };
    if let Some((bytes, times)) = state.trouble.cut.filter(|(_, times)| *times > 0) {
        state.trouble.cut = Some((bytes, times - 1));
        answer.sent = bytes.min(answer.body.len());
    }
    answer
}

struct Answer {
    status: u16,
    headers: String,
    body: Vec<u8>,
    /// Bytes of the body that are sent before the connection ends.
    sent: usize,
}

impl Answer {
    fn new(status: u16, headers: String, body: Vec<u8>) -> Self {
        let sent = body.len();
        Self {
            status,
            headers,
            body,
            sent,
        }
    }

    fn write(self, mut stream: TcpStream, is_head: bool) -> std::io::Result<()> {
        write!(
            stream,
            "HTTP/1.1 {} X\r\nConnection: close\r\nContent-Length: {}\r\n{}\r\n",
            self.status,
            self.body.len(),
            self.headers
        )?;
        if !is_head {
            stream.write_all(&self.body[..self.sent])?;
        }
        Ok(())
    }
}

/// Kept behind the redirect, as the real hub keeps what is in LFS.
pub fn is_large(file: &str) -> bool {
    file.ends_with(".safetensors") || file.ends_with(".gguf") || file.ends_with(".bin")
}

/// SHA-256 of a large file, git's SHA-1 of another.
pub fn tag(file: &str, content: &[u8]) -> String {
    if is_large(file) {
        return hex(Sha256::new_with_prefix(content));
    }
    let mut hasher = Sha1::new_with_prefix(format!("blob {}\0", content.len()));
    hasher.update(content);
    format!("{:x}", hasher.finalize())
}

fn hex(hasher: Sha256) -> String {
    format!("{:x}", hasher.finalize())
}
