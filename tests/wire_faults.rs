//! Prefill nodes that break the rules of the wire: the test speaks it itself. Each is told what
//! it did, and the decode node serves the next one as if nothing had happened.

mod tiny_model;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use disagg_bench::environment::Environment;
use disagg_bench::metrics::{Agreement, Node};
use disagg_bench::model::cache_pool::CachePool;
use disagg_bench::model::engine::Engine;
use disagg_bench::model::kv_cache::{KvCache, KvDtype};
use disagg_bench::model::kv_int8::WireRows;
use disagg_bench::node;
use disagg_bench::node::generation::{Clock, Emission, Generation, Request};
use disagg_bench::wire::message::{
    self, Admit, Done, Introduction, Join, Open, OpenRole, Start, TokenMessage,
};
use disagg_bench::wire::{
    FrameReader, FrameWriter, Header, Kind, PieceHeader, WireError, initiate, socket,
};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tiny_model::{CONTEXT_TOKENS, DEADLINE, DecodeNode, LAYERS, Workplace};
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// Length of the prompts here.
const PROMPT_TOKENS: u32 = 40;

/// Tokens of an answer, the first one included.
const OUTPUT_TOKENS: u32 = 5;

/// A decode node under test, and all that a prefill node needs.
struct Lab {
    place: Workplace,
    node: DecodeNode,
    engine: Engine,
    introduction: Introduction,
    row_bytes: usize,
}

impl Lab {
    fn new() -> Self {
        Self::serving(&[])
    }

    /// With these arguments of `serve-decode`.
    fn serving(arguments: &[&str]) -> Self {
        let place = Workplace::new();
        let node = place.serve(arguments);
        let path = place.path("tiny.gguf");
        let sha256: String = Sha256::digest(std::fs::read(&path).unwrap())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let engine = Engine::load(&path, "tiny", &sha256, None, &|_, _| {}).unwrap();
        let introduction = node::introduction(&engine, &Environment::capture(1)).unwrap();
        Self {
            row_bytes: engine.shape().kv_layout(KvDtype::F32).row_bytes(),
            place,
            node,
            engine,
            introduction,
        }
    }

    async fn connect(&self) -> Link {
        let connected = socket::connect(&self.node.address, DEADLINE, None, None).await;
        let (read, mut write) = connected.unwrap().0.into_split();
        let mut reader = FrameReader::new(read);
        let mut writer = FrameWriter::new(&mut write);
        let session = initiate(&mut reader, &mut writer, &self.introduction, None, DEADLINE).await;
        Link {
            reader,
            write,
            session: session.unwrap().id,
            row_bytes: self.row_bytes,
        }
    }

    /// A connection with request 1 open.
    async fn connect_and_open(&self) -> Link {
        let mut link = self.connect().await;
        link.open(1, &open(&prompt())).await;
        link
    }

    /// A session of two connections with request 1 open.
    async fn connect_twice_and_open(&self) -> (Link, Link) {
        let first = self.connect_and_open().await;
        let second = self.join(&first).await;
        (first, second)
    }

    /// A further connection of a session, which puts that session into its frames.
    async fn join(&self, first: &Link) -> Link {
        let mut link = self.connect().await;
        link.say(Kind::Join, 0, &join(first.session)).await;
        link.reader.expect_empty(Kind::Ready).await.unwrap();
        link.session = first.session;
        link
    }

    /// Runs a request as a good prefill node does, its pieces over these connections in turn, and
    /// demands the answer that this process gives too.
    async fn is_served(&self, links: &mut [&mut Link], number: u64) {
        let prompt = prompt();
        let layout = self.engine.shape().kv_layout(KvDtype::F32);
        let cache = KvCache::new(layout, CONTEXT_TOKENS);
        let prefill = self.engine.prefill(&prompt, None, &cache, |_| {}).unwrap();
        let first_token = prefill.argmax();
        links[0].open(number, &open(&prompt)).await;
        for layer in 0..LAYERS {
            let bytes = cache.read(layer, 0..prompt.len()).unwrap();
            let link = layer % links.len();
            let run = links[link].run(number, layer as u32, 0..PROMPT_TOKENS);
            links[link].send_piece(run, bytes).await;
            let ack = links[link].reader.expect_empty(Kind::Ack).await.unwrap();
            assert_eq!(ack.run(), run);
        }
        links[0].start(number, first_token).await;
        let digest = cache.digest(prompt.len()).unwrap().to_hex();
        let mut token = first_token;
        for index in 1..OUTPUT_TOKENS {
            token = self.engine.step(token, &cache).unwrap().argmax();
            let received = links[0].reader.expect::<TokenMessage>(Kind::Token).await;
            assert_eq!(received.unwrap().1, TokenMessage { index, token });
        }
        let done = links[0].reader.expect::<Done>(Kind::Done).await.unwrap().1;
        assert_eq!(done.cache_digest.as_deref(), Some(&digest[..32]));
    }

    /// Demands that the node is alive, serves `split` with identical answers, and ends well.
    fn ends_well(self) {
        let arguments = [
            &["split", "--out", "next", "--peer", &self.node.address][..],
            &["--prompt-tokens", "200", "--output-tokens", "9"],
            &["--streams", "2", "--repeats", "1"],
        ];
        self.place.run(&arguments.concat()).exits(0);
        let outputs = self.place.record("next").outputs();
        assert_eq!(outputs, Some(Agreement::Identical));
        let stopped = self.node.stop();
        assert!(!stopped.stderr.contains("panicked"), "{stopped}");
    }
}

/// A connection after its handshake.
struct Link {
    reader: FrameReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
    session: u64,
    row_bytes: usize,
}

impl Link {
    async fn say(&mut self, kind: Kind, request: u64, message: &impl Serialize) {
        let session = self.session;
        let mut writer = FrameWriter::new(&mut self.write);
        let said = writer.write_control(kind, session, request, message).await;
        said.unwrap();
    }

    async fn say_nothing_but(&mut self, kind: Kind, request: u64) {
        let session = self.session;
        let mut writer = FrameWriter::new(&mut self.write);
        writer.write_empty(kind, session, request).await.unwrap();
    }

    async fn open(&mut self, number: u64, open: &Open) {
        self.say(Kind::Open, number, open).await;
        let (header, admit) = self.reader.expect::<Admit>(Kind::Admit).await.unwrap();
        assert_eq!(header.request, number);
        assert!(admit.capacity_tokens >= PROMPT_TOKENS);
    }

    async fn start(&mut self, number: u64, first_token: u32) {
        let start = Start { first_token };
        self.say(Kind::Start, number, &start).await;
    }

    fn run(&self, request: u64, layer: u32, tokens: Range<u32>) -> PieceHeader {
        PieceHeader {
            session: self.session,
            request,
            layer,
            token_start: tokens.start,
            token_count: tokens.end - tokens.start,
        }
    }

    /// A piece of zeros, of the right length.
    async fn piece(&mut self, request: u64, layer: u32, tokens: Range<u32>) {
        let zeros = vec![0; tokens.len() * self.row_bytes];
        let run = self.run(request, layer, tokens);
        self.send_piece(run, &zeros).await;
    }

    async fn send_piece(&mut self, run: PieceHeader, payload: &[u8]) {
        let mut writer = FrameWriter::new(&mut self.write);
        writer.write_piece(run, payload).await.unwrap();
    }

    /// Half of a piece, after which the connection is of no more use.
    async fn half_a_piece(&mut self, request: u64, layer: u32, tokens: Range<u32>) {
        let mut frame = Vec::new();
        let zeros = vec![0; tokens.len() * self.row_bytes];
        let run = self.run(request, layer, tokens);
        let mut writer = FrameWriter::new(&mut frame);
        writer.write_piece(run, &zeros).await.unwrap();
        let half = &frame[..frame.len() / 2];
        self.write.write_all(half).await.unwrap();
    }

    /// Demands that the peer fails or refuses next, acknowledgements aside, in words with this in
    /// them.
    #[track_caller]
    fn is_told(&mut self, kind: Kind, part: &str) -> impl Future<Output = ()> {
        let place = std::panic::Location::caller();
        async move {
            let told = tokio::time::timeout(DEADLINE, self.refusal()).await;
            let error = told.unwrap_or_else(|_| panic!("{place}: nothing was said"));
            let right = match kind {
                Kind::Failed => matches!(error, WireError::PeerFailed { .. }),
                _ => matches!(error, WireError::Refused { .. }),
            };
            let text = error.to_string();
            assert!(right && text.contains(part), "{place}: {text}");
        }
    }

    async fn refusal(&mut self) -> WireError {
        loop {
            let header = match self.reader.read_header().await {
                Ok(header) => header,
                Err(error) => return error,
            };
            match header.kind {
                Kind::Ack => self.reader.finish_empty(&header).unwrap(),
                _ => return self.reader.unwanted(&header, Kind::Ack).await,
            }
        }
    }

    /// Demands that the peer closes this connection, without a word.
    async fn is_closed(&mut self) {
        let header = tokio::time::timeout(DEADLINE, self.reader.read_header()).await;
        assert!(header.unwrap().is_err());
    }
}

fn prompt() -> Vec<u32> {
    (0..PROMPT_TOKENS).map(|i| i * 5 + 1).collect()
}

fn open(prompt: &[u32]) -> Open {
    Open {
        prompt_tokens: prompt.to_vec(),
        output_tokens: OUTPUT_TOKENS,
        kv_dtype: message::KvDtype::F32,
        wire_dtype: None,
        chunk_tokens: None,
        ignore_eos: true,
        role: OpenRole::Decode,
    }
}

fn join(session: u64) -> Join {
    Join { session, stream: 1 }
}

/// Runs a test's conversation on a runtime like that of the program.
fn converse(conversation: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap().block_on(conversation);
}

#[test]
fn pieces_that_do_not_belong_where_they_say_fail_the_request() {
    let lab = Lab::new();
    converse(async {
        let all = 0..PROMPT_TOKENS;

        let mut link = lab.connect_and_open().await;
        link.piece(1, LAYERS as u32, all.clone()).await;
        let wanted = "layer 3 is out of range: the cache has 3 layers";
        link.is_told(Kind::Failed, wanted).await;

        let mut link = lab.connect_and_open().await;
        link.piece(1, 0, 30..41).await;
        let wanted = "tokens 30..41 is outside the prompt of 40 tokens";
        link.is_told(Kind::Failed, wanted).await;

        let mut link = lab.connect_and_open().await;
        let mut beyond = link.run(1, 0, 0..1);
        (beyond.token_start, beyond.token_count) = (u32::MAX, u32::MAX);
        link.send_piece(beyond, &[0; 256]).await;
        link.is_told(Kind::Failed, "is outside the prompt").await;

        let mut link = lab.connect_and_open().await;
        link.piece(1, 0, 5..5).await;
        link.is_told(Kind::Failed, "tokens 5..5").await;

        let mut link = lab.connect_and_open().await;
        link.piece(1, 1, all.clone()).await;
        link.piece(1, 1, all.clone()).await;
        let wanted = "tokens 0..40 of layer 1 overlap a range that was already written";
        link.is_told(Kind::Failed, wanted).await;

        let mut link = lab.connect_and_open().await;
        link.piece(1, 2, 0..20).await;
        link.piece(1, 2, 19..40).await;
        let wanted = "tokens 19..40 of layer 2 overlap";
        link.is_told(Kind::Failed, wanted).await;

        let mut link = lab.connect_and_open().await;
        link.piece(9, 0, all.clone()).await;
        let wanted = "a piece of request 9 came during request 1";
        link.is_told(Kind::Failed, wanted).await;

        let mut link = lab.connect_and_open().await;
        link.session ^= 1;
        link.piece(1, 0, all.clone()).await;
        link.is_told(Kind::Failed, "a frame of session").await;

        for rows in [39, 41] {
            let mut link = lab.connect_and_open().await;
            let run = link.run(1, 0, all.clone());
            link.send_piece(run, &vec![0; rows * lab.row_bytes]).await;
            let wanted = format!("PIECE of {} bytes where {}", rows * 256, 40 * 256);
            link.is_told(Kind::Failed, &wanted).await;
        }
    });
    lab.ends_well();
}

#[test]
fn quantised_pieces_are_held_against_the_rows_that_were_announced() {
    let lab = Lab::new();
    let rows = WireRows::Int8.row_bytes(lab.engine.shape().kv_layout(KvDtype::F32));
    // Two heads, K and V each with its scale.
    assert_eq!((rows, lab.row_bytes), (2 * 2 * (4 + 16), 2 * 2 * 16 * 4));
    let quantised = || {
        let mut open = open(&prompt());
        open.wire_dtype = Some(message::WireDtype::Int8);
        open
    };
    converse(async {
        // Rows of the cache itself, one row too few, one too many, and none.
        for length in [40 * lab.row_bytes, 39 * rows, 41 * rows, 0] {
            let mut link = lab.connect().await;
            link.open(1, &quantised()).await;
            let run = link.run(1, 0, 0..PROMPT_TOKENS);
            link.send_piece(run, &vec![0; length]).await;
            let wanted = format!("PIECE of {length} bytes where {}", 40 * rows);
            link.is_told(Kind::Failed, &wanted).await;
        }
        // And quantised ones where nobody announced them, over a joined connection.
        let (mut first, mut second) = lab.connect_twice_and_open().await;
        let run = second.run(1, 0, 0..PROMPT_TOKENS);
        second.send_piece(run, &vec![0; 40 * rows]).await;
        let wanted = format!("PIECE of {} bytes where {}", 40 * rows, 40 * lab.row_bytes);
        first.is_told(Kind::Failed, &wanted).await;

        // Whatever is in them, the node lives: scales and values that are no numbers.
        let mut link = lab.connect().await;
        link.open(1, &quantised()).await;
        link.start(1, 1).await;
        for layer in 0..LAYERS as u32 {
            let run = link.run(1, layer, 0..PROMPT_TOKENS);
            link.send_piece(run, &vec![0xff; 40 * rows]).await;
            link.reader.expect_empty(Kind::Ack).await.unwrap();
        }
        for index in 1..OUTPUT_TOKENS {
            let token = link.reader.expect::<TokenMessage>(Kind::Token).await;
            assert_eq!(token.unwrap().1.index, index);
        }
        link.reader.expect::<Done>(Kind::Done).await.unwrap();
        // The buffer of the last request is no trap for the next.
        lab.is_served(&mut [&mut link], 2).await;
    });
    lab.ends_well();
}

#[test]
fn messages_out_of_turn_are_answered_with_what_was_due() {
    let lab = Lab::new();
    converse(async {
        // Before anything was opened.
        let mut link = lab.connect().await;
        link.piece(1, 0, 0..PROMPT_TOKENS).await;
        link.is_told(Kind::Refuse, "the peer sent PIECE where OPEN is due")
            .await;

        let mut link = lab.connect().await;
        link.start(1, 1).await;
        link.is_told(Kind::Refuse, "the peer sent START where OPEN is due")
            .await;

        let mut link = lab.connect().await;
        link.session ^= 1;
        link.say(Kind::Open, 1, &open(&prompt())).await;
        link.is_told(Kind::Refuse, "a frame of session").await;

        let mut link = lab.connect().await;
        let header = Header::new(Kind::Open, link.session, 1, 5 << 20).encode();
        link.write.write_all(&header).await.unwrap();
        link.is_told(Kind::Refuse, "is over the limit of 4194304 bytes")
            .await;

        let mut link = lab.connect().await;
        link.say(Kind::Open, 1, &"nonsense").await;
        link.is_told(Kind::Refuse, "cannot read the peer's OPEN message")
            .await;

        // While a cache is arriving.
        let mut link = lab.connect_and_open().await;
        link.say(Kind::Open, 2, &open(&prompt())).await;
        link.is_told(Kind::Failed, "the peer sent OPEN where PIECE is due")
            .await;

        let mut link = lab.connect_and_open().await;
        link.start(1, 1).await;
        link.start(1, 2).await;
        link.is_told(Kind::Failed, "START came twice").await;

        let mut link = lab.connect_and_open().await;
        link.start(7, 1).await;
        link.is_told(Kind::Failed, "START of request 7 came during request 1")
            .await;

        let mut link = lab.connect_and_open().await;
        link.say_nothing_but(Kind::Cancel, 7).await;
        link.is_told(Kind::Failed, "CANCEL of request 7 came during request 1")
            .await;

        let mut link = lab.connect_and_open().await;
        link.start(1, 1_000_000).await;
        for layer in 0..LAYERS as u32 {
            link.piece(1, layer, 0..PROMPT_TOKENS).await;
        }
        link.is_told(Kind::Failed, "token 1000000 is not in the vocabulary")
            .await;
    });
    lab.ends_well();
}

#[test]
fn a_peer_that_leaves_amid_a_request_is_told_apart_from_one_that_is_done() {
    let lab = Lab::new();
    converse(async {
        let mut link = lab.connect().await;
        lab.is_served(&mut [&mut link], 1).await;
        drop(link);
        lab.node.prints(" left");

        let mut link = lab.connect_and_open().await;
        link.piece(1, 0, 0..PROMPT_TOKENS).await;
        link.piece(1, 2, 0..10).await;
        link.start(1, 1).await;
        // Unread, these would make the end of the connection a reset.
        for _ in 0..2 {
            link.reader.expect_empty(Kind::Ack).await.unwrap();
        }
        drop(link);
        lab.node
            .prints("dropped: the peer closed the connection in the middle of a request");

        let mut link = lab.connect_and_open().await;
        link.half_a_piece(1, 0, 0..PROMPT_TOKENS).await;
        drop(link);
        lab.node.prints("in the middle of a payload");
    });
    lab.ends_well();
}

#[test]
fn what_is_refused_or_taken_back_leaves_the_connection_usable() {
    let lab = Lab::new();
    converse(async {
        let mut link = lab.connect().await;
        let long: Vec<u32> = vec![1; CONTEXT_TOKENS + 1];
        let mut refused = vec![(open(&long), "(limit)")];
        refused.push((open(&[]), "(bad-request)"));
        let mut endless = open(&prompt());
        endless.output_tokens = u32::MAX;
        refused.push((endless, "(limit)"));
        let mut silent = open(&prompt());
        silent.output_tokens = 0;
        refused.push((silent, "(bad-request)"));
        let mut foreign = open(&prompt());
        foreign.wire_dtype = Some(message::WireDtype::F16);
        refused.push((foreign, "or as int8, in no other"));
        let mut numbers = 1..;
        for (open, code) in refused {
            let number = numbers.next().unwrap();
            link.say(Kind::Open, number, &open).await;
            link.is_told(Kind::Refuse, code).await;
        }
        lab.is_served(&mut [&mut link], numbers.next().unwrap())
            .await;

        // Taken back before, amid and after its pieces, and once more behind its end.
        for sent in [0..0, 0..20, 0..PROMPT_TOKENS] {
            let number = numbers.next().unwrap();
            link.open(number, &open(&prompt())).await;
            if !sent.is_empty() {
                for layer in 0..LAYERS as u32 {
                    link.piece(number, layer, sent.clone()).await;
                    link.reader.expect_empty(Kind::Ack).await.unwrap();
                }
            }
            link.say_nothing_but(Kind::Cancel, number).await;
            link.say_nothing_but(Kind::Cancel, number).await;
        }
        lab.is_served(&mut [&mut link], numbers.next().unwrap())
            .await;
    });
    lab.ends_well();
}

#[test]
fn a_session_that_is_not_open_cannot_be_joined() {
    let lab = Lab::new();
    converse(async {
        let mut link = lab.connect().await;
        let unknown = link.session ^ 1;
        link.say(Kind::Join, 0, &join(unknown)).await;
        let wanted = format!("session {unknown:016x} is not open on this node");
        link.is_told(Kind::Refuse, &wanted).await;

        // Nor one whose first connection is gone; those that had joined it are sent away.
        let first = lab.connect().await;
        let gone = first.session;
        let mut second = lab.join(&first).await;
        drop(first);
        second.is_closed().await;
        let mut late = lab.connect().await;
        late.say(Kind::Join, 0, &join(gone)).await;
        let wanted = format!("session {gone:016x} is not open on this node");
        late.is_told(Kind::Refuse, &wanted).await;
    });
    lab.ends_well();
}

#[test]
fn connections_that_join_themselves_or_each_other_are_let_go() {
    let lab = Lab::new();
    converse(async {
        let mut own = lab.connect().await;
        let session = own.session;
        own.say(Kind::Join, 0, &join(session)).await;
        let wanted = format!("session {session:016x} is not open on this node");
        own.is_told(Kind::Refuse, &wanted).await;

        let (mut first, mut second) = (lab.connect().await, lab.connect().await);
        first.say(Kind::Join, 0, &join(second.session)).await;
        first.reader.expect_empty(Kind::Ready).await.unwrap();
        second.say(Kind::Join, 0, &join(first.session)).await;
        let wanted = format!("session {:016x} is not open on this node", first.session);
        second.is_told(Kind::Refuse, &wanted).await;
        first.is_closed().await;

        // In a row: the one that joined a session that then joins another is let go.
        let last = lab.connect().await;
        let mut middle = lab.connect().await;
        let mut first = lab.join(&middle).await;
        middle.say(Kind::Join, 0, &join(last.session)).await;
        middle.reader.expect_empty(Kind::Ready).await.unwrap();
        first.is_closed().await;
        drop(last);
        middle.is_closed().await;
    });
    lab.ends_well();
}

#[test]
fn a_joined_connection_that_stays_silent_does_not_keep_the_node_from_stopping() {
    let lab = Lab::new();
    converse(async {
        let first = lab.connect().await;
        let mut second = lab.join(&first).await;
        lab.node.process.signal("TERM");
        second.is_closed().await;
        drop(first);
    });
    lab.node.process.wait().exits(0);
}

#[test]
fn a_joined_connection_that_fails_is_named_on_the_first() {
    let lab = Lab::new();
    converse(async {
        let (mut first, mut second) = lab.connect_twice_and_open().await;
        first.piece(1, 0, 0..PROMPT_TOKENS).await;
        second.half_a_piece(1, 1, 0..PROMPT_TOKENS).await;
        drop(second);
        let wanted = "connection 1: the peer closed the connection in the middle of a payload";
        first.is_told(Kind::Failed, wanted).await;

        let (mut first, second) = lab.connect_twice_and_open().await;
        drop(second);
        let wanted = "connection 1: the peer closed the connection";
        first.is_told(Kind::Failed, wanted).await;

        let (mut first, mut second) = lab.connect_twice_and_open().await;
        second.say_nothing_but(Kind::Ping, 1).await;
        first
            .is_told(Kind::Failed, "the peer sent PING where PIECE is due")
            .await;

        let (mut first, mut second) = lab.connect_twice_and_open().await;
        second.start(1, 1).await;
        first
            .is_told(Kind::Failed, "the peer sent START where PIECE is due")
            .await;

        let (mut first, mut second) = lab.connect_twice_and_open().await;
        first.piece(1, 1, 0..30).await;
        first.reader.expect_empty(Kind::Ack).await.unwrap();
        second.piece(1, 1, 20..40).await;
        first
            .is_told(Kind::Failed, "tokens 20..40 of layer 1 overlap")
            .await;

        let (mut first, mut second) = lab.connect_twice_and_open().await;
        second.piece(9, 1, 20..40).await;
        let wanted = "a piece of request 9 came during request 1";
        first.is_told(Kind::Failed, wanted).await;

        let (mut first, mut second) = lab.connect_twice_and_open().await;
        second.session ^= 1;
        second.piece(1, 1, 20..40).await;
        first.is_told(Kind::Failed, "a frame of session").await;
    });
    lab.ends_well();
}

#[test]
fn a_piece_on_a_joined_connection_while_nothing_is_open_costs_that_connection_alone() {
    let lab = Lab::new();
    converse(async {
        let mut first = lab.connect().await;
        let mut second = lab.join(&first).await;
        lab.is_served(&mut [&mut first, &mut second], 1).await;
        // Late ones are of no interest, as after a request that was taken back.
        second.piece(1, 0, 0..PROMPT_TOKENS).await;
        first.open(2, &open(&prompt())).await;
        first.say_nothing_but(Kind::Cancel, 2).await;
        // Answered behind the cancel, so that the piece comes too late for certain.
        first.say_nothing_but(Kind::Ping, 1).await;
        first.reader.expect_empty(Kind::Pong).await.unwrap();
        second.piece(2, 0, 0..PROMPT_TOKENS).await;
        lab.is_served(&mut [&mut first, &mut second], 3).await;

        second.piece(4, 0, 0..PROMPT_TOKENS).await;
        let wanted = "a piece of request 4 came, and no request is open";
        second.is_told(Kind::Refuse, wanted).await;
        let mut third = lab.join(&first).await;
        lab.is_served(&mut [&mut first, &mut third], 4).await;
    });
    lab.ends_well();
}

/// Objects of one member: as many as a HELLO has room for, and far larger parsed than sent.
const ENVIRONMENT_OBJECTS: usize = 35_000;

/// Connections that send them: half a gigabyte if each were kept in its parsed form.
const SWOLLEN_HELLOS: usize = 24;

#[test]
fn a_hello_costs_no_more_than_its_size_once_it_was_read() {
    let mut lab = Lab::new();
    let object = serde_json::json!({"": 0});
    lab.introduction.environment = vec![object; ENVIRONMENT_OBJECTS].into();
    let resident_bytes = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", lab.node.process.id()));
        let status = status.unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        let kib = line.unwrap().split_whitespace().next().unwrap();
        kib.parse::<u64>().unwrap() << 10
    };
    converse(async {
        // The first one's parsed form is taken and given back, and the next ones can have it.
        let mut links = vec![lab.connect().await];
        let before = resident_bytes();
        for _ in 1..SWOLLEN_HELLOS {
            links.push(lab.connect().await);
        }
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < 100 << 20, "{grown} bytes more");
        lab.is_served(&mut [&mut links[0]], 1).await;
    });
    lab.ends_well();
}

#[test]
fn a_prefill_that_nobody_wants_any_more_ends_at_its_next_chunk() {
    let lab = Lab::new();
    let layout = lab.engine.shape().kv_layout(KvDtype::F32);
    let request = Request {
        prompt: prompt(),
        output_tokens: OUTPUT_TOKENS,
        ignore_eos: true,
        kv_dtype: KvDtype::F32,
        wire_rows: WireRows::Same,
        chunk_tokens: Some(8),
    };
    let layers_until = |wanted_chunks: usize| {
        let cache = CachePool::new(1 << 24).take(layout, request.cache_tokens());
        let clock = Clock::start(Node::Decode);
        let mut generation = Generation::new(request.clone(), Arc::new(cache.unwrap()), clock);
        let layers = Cell::new(0);
        let is_wanted = || layers.get() < wanted_chunks * LAYERS;
        let turn = generation.advance(&lab.engine, &is_wanted, &mut |emission| {
            layers.set(layers.get() + usize::from(matches!(emission, Emission::LayerDone(_))));
        });
        (turn.map_err(|error| error.to_string()), layers.get())
    };
    let chunks = PROMPT_TOKENS as usize / 8;
    let taken_back = "the request was taken back amid its prefill".to_owned();
    assert_eq!(layers_until(2), (Err(taken_back), 2 * LAYERS));
    assert_eq!(layers_until(chunks), (Ok(None), chunks * LAYERS));
}

#[test]
fn a_prefill_beyond_the_working_memory_has_to_come_in_chunks() {
    // Room for the cache, and for some tens of tokens at once.
    let lab = Lab::serving(&["--max-cache", "1MB"]);
    converse(async {
        let mut link = lab.connect().await;
        let mut whole = open(&vec![1; 200]);
        whole.role = OpenRole::Whole;
        link.say(Kind::Open, 1, &whole).await;
        link.is_told(Kind::Refuse, "use --chunk-tokens").await;
        whole.chunk_tokens = Some(32);
        link.open(2, &whole).await;
        for index in 0..OUTPUT_TOKENS {
            let token = link.reader.expect::<TokenMessage>(Kind::Token).await;
            assert_eq!(token.unwrap().1.index, index);
        }
        link.reader.expect::<Done>(Kind::Done).await.unwrap();
        // One whose cache comes from elsewhere is prefilled there.
        link.open(3, &open(&vec![1; 200])).await;
        link.say_nothing_but(Kind::Cancel, 3).await;
    });
    lab.node.stop();
}

#[test]
fn sessions_are_numbered_apart() {
    let lab = Lab::new();
    converse(async {
        let mut numbers = BTreeSet::new();
        for _ in 0..8 {
            numbers.insert(lab.connect().await.session);
        }
        assert_eq!(numbers.len(), 8);
    });
    lab.ends_well();
}
