//! A TCP proxy that understands frames: it lets them pass until a chosen one and stops in the
//! middle of that, so that a test can strike at an exact point of a request.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use disagg_bench::wire::Kind;
use disagg_bench::wire::frame::HEADER_BYTES;

use super::DEADLINE;

/// Where the kind stands in a header.
const KIND: std::ops::Range<usize> = 10..12;

/// Where the payload's length stands in a header.
const PAYLOAD_BYTES: std::ops::Range<usize> = 48..56;

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
    /// Passes frames until the `number`th of a kind, counted from 1. Only one connection is taken:
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
            let threads = [
                std::thread::spawn(move || forward([prefill, decode], kind, number, &tell)),
                std::thread::spawn(move || forward(back, kind, number, &told)),
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
fn forward(streams: [TcpStream; 2], kind: Kind, number: usize, stopped: &Sender<()>) {
    let (mut from, mut to) = (&streams[0], &streams[1]);
    let mut left = number;
    while let Some(frame) = read_frame(&mut from) {
        left -= usize::from(frame[KIND] == (kind as u16).to_le_bytes());
        if left == 0 {
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
    /// Flips a bit in the payload of the `number`th frame of a kind, counted from 1, that a
    /// prefill node sends.
    pub fn start(decode_node: &str, kind: Kind, number: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (upstream, ended) = (decode_node.to_owned(), Arc::new(AtomicBool::new(false)));
        let (is_over, left) = (Arc::clone(&ended), Arc::new(AtomicUsize::new(number)));
        let accepting = std::thread::spawn(move || {
            for prefill in listener.incoming().map_while(Result::ok) {
                let decode = TcpStream::connect(&upstream);
                let (false, Ok(decode)) = (is_over.load(Ordering::SeqCst), decode) else {
                    return;
                };
                let back = [decode.try_clone().unwrap(), prefill.try_clone().unwrap()];
                let left = Arc::clone(&left);
                std::thread::spawn(move || pass([prefill, decode], kind, &left));
                std::thread::spawn(move || pass(back, kind, &AtomicUsize::new(usize::MAX)));
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

/// Copies frames until either end closes; the one at which `left` reaches zero is damaged.
fn pass(streams: [TcpStream; 2], kind: Kind, left: &AtomicUsize) {
    let (mut from, mut to) = (&streams[0], &streams[1]);
    while let Some(mut frame) = read_frame(&mut from) {
        let is_kind = frame[KIND] == (kind as u16).to_le_bytes();
        if is_kind && left.fetch_sub(1, Ordering::SeqCst) == 1 {
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
