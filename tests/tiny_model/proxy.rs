//! A TCP proxy that understands frames: it lets them pass until a chosen one and stops in the
//! middle of that, so that a test can strike at an exact point of a request.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use disagg_bench::wire::Kind;
use disagg_bench::wire::frame::HEADER_BYTES;

use super::DEADLINE;

/// Where the kind stands in a header.
const KIND: std::ops::Range<usize> = 10..12;

/// Where the payload's length stands in a header.
const PAYLOAD_BYTES: std::ops::Range<usize> = 48..56;

/// Counts frames of a kind down to the chosen one. It starts at the first OPEN: before it a run
/// measures its link, with more pieces or fewer as time allows.
struct Countdown {
    kind: Kind,
    opened: bool,
    left: usize,
}

impl Countdown {
    fn new(kind: Kind, number: usize) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            kind,
            opened: false,
            left: number,
        }))
    }

    /// Whether this frame is the chosen one.
    fn is_chosen(countdown: &Mutex<Self>, frame: &[u8]) -> bool {
        let is = |kind: Kind| frame[KIND] == (kind as u16).to_le_bytes();
        let mut this = countdown.lock().unwrap();
        this.opened |= is(Kind::Open);
        if !this.opened || !is(this.kind) || this.left == 0 {
            return false;
        }
        this.left -= 1;
        this.left == 0
    }
}

/// Stands between a prefill and a decode node, for one connection.
pub struct Proxy {
    /// Where it listens.
    pub address: String,
    stopped: Receiver<()>,
    /// Dropped, the connection is cut.
    uncut: Option<Sender<()>>,
    forwarding: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Passes frames until the `number`th of a kind, counted from 1 at the first OPEN. Only one connection is taken:
    /// afterwards the address answers as a machine on which nothing runs.
    pub fn start(decode_node: &str, kind: Kind, number: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let upstream = decode_node.to_owned();
        let (tell, stopped) = channel();
        let (uncut, cut) = channel();
        let forwarding = std::thread::spawn(move || {
            let (prefill, _) = listener.accept().unwrap();
            drop(listener);
            let Ok(decode) = TcpStream::connect(&upstream) else {
                return;
            };
            let both = [prefill.try_clone().unwrap(), decode.try_clone().unwrap()];
            let back = [decode.try_clone().unwrap(), prefill.try_clone().unwrap()];
            let told = tell.clone();
            let countdown = Countdown::new(kind, number);
            let same = Arc::clone(&countdown);
            let threads = [
                std::thread::spawn(move || forward([prefill, decode], &countdown, &tell)),
                std::thread::spawn(move || forward(back, &same, &told)),
            ];
            // An error is the cut.
            let _: Result<(), _> = cut.recv();
            close(&both);
            for thread in threads {
                thread.join().unwrap();
            }
        });
        Self {
            address,
            stopped,
            uncut: Some(uncut),
            forwarding: Some(forwarding),
        }
    }

    /// Waits until half of the chosen frame has passed.
    pub fn wait_until_stopped(&self) {
        let stopped = self.stopped.recv_timeout(DEADLINE);
        stopped.expect("the frame to stop at never came");
    }

    /// Closes both sides, as the system of a node that died does.
    pub fn cut(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.uncut = None;
        // It may still be waiting for its connection.
        let _ = TcpStream::connect(&self.address);
        if let Some(forwarding) = self.forwarding.take() {
            let _ = forwarding.join();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.end();
    }
}

fn close(streams: &[TcpStream; 2]) {
    for stream in streams {
        // An error means that it is closed already.
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// Copies frames until either end closes or the chosen one comes.
fn forward(streams: [TcpStream; 2], countdown: &Mutex<Countdown>, stopped: &Sender<()>) {
    let (mut from, mut to) = (&streams[0], &streams[1]);
    while let Some(frame) = read_frame(&mut from) {
        if Countdown::is_chosen(countdown, &frame) {
            let _ = to.write_all(&frame[..frame.len() / 2]);
            let _ = stopped.send(());
            return;
        }
        if to.write_all(&frame).is_err() {
            break;
        }
    }
    close(&streams);
}

/// Passes everything on but for one damaged byte, and takes any number of connections.
pub struct DamagingProxy {
    /// Where it listens.
    pub address: String,
    ended: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl DamagingProxy {
    /// Flips a bit in the payload of the `number`th frame of a kind, counted from 1 at the first
    /// OPEN, that a prefill node sends.
    pub fn start(decode_node: &str, kind: Kind, number: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (upstream, ended) = (decode_node.to_owned(), Arc::new(AtomicBool::new(false)));
        let (is_over, countdown) = (Arc::clone(&ended), Countdown::new(kind, number));
        let accepting = std::thread::spawn(move || {
            for prefill in listener.incoming().map_while(Result::ok) {
                let decode = TcpStream::connect(&upstream);
                let (false, Ok(decode)) = (is_over.load(Ordering::SeqCst), decode) else {
                    return;
                };
                let back = [decode.try_clone().unwrap(), prefill.try_clone().unwrap()];
                let countdown = Arc::clone(&countdown);
                std::thread::spawn(move || pass([prefill, decode], Some(&countdown)));
                std::thread::spawn(move || pass(back, None));
            }
        });
        Self {
            address,
            ended,
            accepting: Some(accepting),
        }
    }
}

impl Drop for DamagingProxy {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(&self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

/// Copies frames until either end closes; the chosen one is damaged.
fn pass(streams: [TcpStream; 2], countdown: Option<&Mutex<Countdown>>) {
    let (mut from, mut to) = (&streams[0], &streams[1]);
    while let Some(mut frame) = read_frame(&mut from) {
        if countdown.is_some_and(|countdown| Countdown::is_chosen(countdown, &frame)) {
            let middle = HEADER_BYTES + (frame.len() - HEADER_BYTES) / 2;
            frame[middle] ^= 0x40;
        }
        if to.write_all(&frame).is_err() {
            break;
        }
    }
    close(&streams);
}

fn read_frame(from: &mut impl Read) -> Option<Vec<u8>> {
    let mut frame = vec![0; HEADER_BYTES];
    from.read_exact(&mut frame).ok()?;
    let payload_bytes = u64::from_le_bytes(frame[PAYLOAD_BYTES].try_into().unwrap());
    frame.resize(HEADER_BYTES + payload_bytes as usize, 0);
    from.read_exact(&mut frame[HEADER_BYTES..]).ok()?;
    Some(frame)
}
