//! A proxy that does one thing wrong to the frames of one connection, at a chosen frame and
//! direction, and everything right otherwise.

use std::time::Duration;

use disagg_bench::wire::frame::HEADER_BYTES;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// Where the payload's length stands in a header.
const PAYLOAD_BYTES: std::ops::Range<usize> = 48..56;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Nothing: how many frames there are.
    None,
    /// Both ends see a reset before the frame.
    Reset,
    /// The sender's direction ends before the frame, the other one goes on.
    HalfClose,
    /// Nothing comes any more, and the connection stays.
    Stall,
    /// The frame stops after so many of its bytes, and the connection stays.
    StallInside(usize),
    /// The frame ends after so many of its bytes, and the connection with it.
    Truncate(usize),
    /// Each byte of the frame comes alone.
    ByteByByte,
    /// A bit of the frame is another, counted from its first byte.
    BitFlip(usize),
    /// The frame comes twice.
    Duplicate,
    /// The frame does not come.
    Lose,
    /// The frame comes behind the next one.
    Reorder,
    /// The header announces the largest length that there is.
    HugeLength,
    /// The header is of another version.
    OtherVersion,
}

/// Where it goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// In what the node that connects sends; else in what it gets.
    pub to_decode: bool,
    /// The frame, counted from 0.
    pub frame: usize,
}

/// Frames that passed, there and back.
pub type Passed = [usize; 2];

/// Takes one connection, passes it on and gives the number of frames once both directions ended.
pub async fn pass_one(
    listener: TcpListener,
    upstream: String,
    place: Place,
    fault: Fault,
) -> Passed {
    let Ok((near, _)) = listener.accept().await else {
        return [0; 2];
    };
    let Ok(far) = TcpStream::connect(&upstream).await else {
        return [0; 2];
    };
    for stream in [&near, &far] {
        let _ = stream.set_nodelay(true);
        if fault == Fault::Reset {
            // Closed with this, a connection is reset instead of ended.
            let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    let at = |to_decode: bool| (place.to_decode == to_decode).then_some((place.frame, fault));
    let there = forward(near_read, far_write, at(true));
    let back = forward(far_read, near_write, at(false));
    let (there, back) = if matches!(fault, Fault::Reset | Fault::Truncate(_)) {
        tokio::pin!(there, back);
        // The other direction ends with the one that was hit.
        tokio::select! {
            there = &mut there => (there, 0),
            back = &mut back => (0, back),
        }
    } else {
        tokio::join!(there, back)
    };
    [there, back]
}

/// Passes frames on until one of the ends closes; gives their number.
async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    fault: Option<(usize, Fault)>,
) -> usize {
    let mut passed = 0;
    let mut held_back = None;
    while let Some(mut frame) = read_frame(&mut from).await {
        let fault = fault
            .filter(|(at, _)| *at == passed)
            .map(|(_, fault)| fault);
        passed += 1;
        let written = match fault {
            None | Some(Fault::None) => to.write_all(&frame).await,
            Some(Fault::Reset | Fault::HalfClose) => break,
            Some(Fault::Stall) => return stall(from, to, passed).await,
            Some(Fault::StallInside(bytes)) => {
                let _ = to
                    .write_all(&frame[..bytes.clamp(1, frame.len() - 1)])
                    .await;
                return stall(from, to, passed).await;
            }
            Some(Fault::Truncate(bytes)) => {
                let _ = to
                    .write_all(&frame[..bytes.clamp(1, frame.len() - 1)])
                    .await;
                break;
            }
            Some(Fault::ByteByByte) => {
                let mut written = Ok(());
                for byte in frame {
                    written = written.and(to.write_all(&[byte]).await);
                    tokio::task::yield_now().await;
                }
                written
            }
            Some(Fault::BitFlip(bit)) => {
                let bit = bit % (8 * frame.len());
                frame[bit / 8] ^= 1 << (bit % 8);
                to.write_all(&frame).await
            }
            Some(Fault::Duplicate) => to.write_all(&frame.repeat(2)).await,
            Some(Fault::Lose) => Ok(()),
            Some(Fault::Reorder) => {
                held_back = Some(frame);
                continue;
            }
            Some(Fault::HugeLength) => {
                frame[PAYLOAD_BYTES].copy_from_slice(&u64::MAX.to_le_bytes());
                to.write_all(&frame).await
            }
            Some(Fault::OtherVersion) => {
                frame[8] ^= 0x40;
                to.write_all(&frame).await
            }
        };
        let written = match held_back.take() {
            Some(held) => written.and(to.write_all(&held).await),
            None => written,
        };
        if written.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
    passed
}

/// Keeps a direction open and silent until its sender closes.
async fn stall(mut from: OwnedReadHalf, to: OwnedWriteHalf, passed: usize) -> usize {
    let mut unread = vec![0; 1 << 16];
    while matches!(from.read(&mut unread).await, Ok(n) if n > 0) {}
    drop(to);
    passed
}

async fn read_frame(from: &mut OwnedReadHalf) -> Option<Vec<u8>> {
    let mut frame = vec![0; HEADER_BYTES];
    from.read_exact(&mut frame).await.ok()?;
    let payload_bytes = u64::from_le_bytes(frame[PAYLOAD_BYTES].try_into().ok()?);
    frame.resize(HEADER_BYTES + payload_bytes as usize, 0);
    from.read_exact(&mut frame[HEADER_BYTES..]).await.ok()?;
    Some(frame)
}
