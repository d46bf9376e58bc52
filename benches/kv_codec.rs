//! KV codec from memory to memory: `encode` frames and checksums live cache slices, `decode` reads
//! frames into place in a pooled cache and verifies them, `memcpy` copies the same bytes. No
//! socket and no runtime; the way over a socket is `whole_way`'s.
//!
//! Run with `cargo bench --bench kv_codec`.

mod payload;

use std::future::Future;
use std::hint::black_box;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use disagg_bench::model::cache_pool::{CachePool, Pooled};
use disagg_bench::wire::{FrameReader, FrameWriter, PieceHeader, WireError};
use tokio::io::{AsyncRead, AsyncWrite};

use payload::{PAYLOADS, POOL_BYTES, Payload, slice_of};

/// Takes whatever it is given without copying it, as a socket does up to the system call.
struct Discard;

impl AsyncWrite for Discard {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(black_box(bytes).len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(slices.iter().map(|slice| black_box(slice).len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Runs a future whose IO is memory: it is ready at its first poll, so no runtime is measured.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("memory never waits"),
    }
}

/// What the prefill node does with a full cache.
async fn encode<W: AsyncWrite + Unpin>(
    payload: Payload,
    cache: &Pooled,
    writer: &mut FrameWriter<W>,
) -> Result<(), WireError> {
    for piece in payload.pieces() {
        writer.write_piece(piece, slice_of(cache, piece)).await?;
    }
    Ok(())
}

/// What the decode node does until the cache is complete, acknowledgements included.
async fn decode<R: AsyncRead + Unpin>(
    payload: Payload,
    cache: &Pooled,
    reader: &mut FrameReader<R>,
    acknowledge: &mut FrameWriter<Discard>,
) -> Result<(), WireError> {
    let mut missing = payload.tokens * payload.layout.n_layers;
    while missing > 0 {
        let header = reader.read_header().await?;
        let run: PieceHeader = header.run();
        let (start, count) = (run.token_start as usize, run.token_count as usize);
        let mut claim = (cache.claim(run.layer as usize, start, count))
            .expect("pieces neither overlap nor leave the cache");
        reader.read_payload_into(&header, &mut claim).await?;
        claim.land();
        acknowledge.write_ack(run).await?;
        missing -= count;
    }
    Ok(())
}

/// A full cache and the bytes that its frames are on the wire.
fn full_cache(payload: Payload, pool: &Arc<CachePool>) -> (Pooled, Vec<u8>) {
    let cache = pool.take(payload.layout, payload.tokens).expect("it fits");
    payload.fill(&cache);
    let mut wire = Vec::new();
    at_once(encode(payload, &cache, &mut FrameWriter::new(&mut wire))).expect("memory takes all");
    (cache, wire)
}

fn decode_from(payload: Payload, wire: &[u8], pool: &Arc<CachePool>) -> Pooled {
    let cache = pool.take(payload.layout, payload.tokens).expect("it fits");
    let (mut reader, mut acknowledge) = (FrameReader::new(wire), FrameWriter::new(Discard));
    at_once(decode(payload, &cache, &mut reader, &mut acknowledge)).expect("the frames are whole");
    cache
}

fn kv_codec(criterion: &mut Criterion) {
    for payload in PAYLOADS {
        let pool = CachePool::new(POOL_BYTES);
        let (cache, wire) = full_cache(payload, &pool);
        assert_eq!(
            decode_from(payload, &wire, &pool)
                .digest(payload.tokens)
                .ok(),
            cache.digest(payload.tokens).ok(),
            "the cache that was decoded is not the one that was encoded"
        );

        let mut group = criterion.benchmark_group("kv_codec");
        group.throughput(Throughput::BytesDecimal(payload.kv_bytes() as u64));
        group.bench_function(BenchmarkId::new("encode", payload.name), |bencher| {
            let mut writer = FrameWriter::new(Discard);
            bencher.iter(|| at_once(encode(payload, black_box(&cache), &mut writer)));
        });
        group.bench_function(BenchmarkId::new("decode", payload.name), |bencher| {
            bencher.iter(|| decode_from(payload, black_box(&wire), &pool));
        });
        group.bench_function(BenchmarkId::new("memcpy", payload.name), |bencher| {
            let mut copy = vec![1; payload.kv_bytes()];
            bencher.iter(|| {
                let mut rest = &mut copy[..];
                for piece in payload.pieces() {
                    let from = black_box(slice_of(&cache, piece));
                    let (to, behind) = rest.split_at_mut(from.len());
                    to.copy_from_slice(from);
                    rest = behind;
                }
                black_box(&mut copy);
            });
        });
        group.finish();
    }
}

criterion_group!(benches, kv_codec);
criterion_main!(benches);
