//! The first exchange on a connection: who is there, do both nodes fit together, do both hold
//! the token. Requests come after it and are the nodes' business.
//!
//! ```text
//! prefill node (initiate)                    decode node (respond)
//! HELLO(nonce) ─────────────────────────────▶ version, model, layout, token wanted?
//! checks the same, and the proof ◀─────────── HELLO(nonce, proof), session id in the header
//! AUTH(proof) ──────────────────────────────▶ checks the proof
//!                                ◀─────────── READY
//! ```
//! Either side answers with REFUSE where it does not agree, and the reason is the same text on
//! both. What only changes bits (instruction set, threads, revision) is exchanged, not refused.

use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::auth::{Challenge, Prover, Token};
use super::connection::{FrameReader, FrameWriter};
use super::error::WireError;
use super::frame::{Kind, MAX_HELLO_BYTES};
use super::message::{
    Auth, CacheLayout, Hello, Hex32, Introduction, KvDtype, LayerLayout, Refuse, printable,
};

/// Longest a handshake usually may take from first to last byte: far beyond any round trip, short
/// enough that a silent stranger does not hold a place.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What sets another time on a decode node.
pub(super) const HANDSHAKE_FLAG: &str = "--handshake-timeout";

/// Longest that a refused peer is given to read the reason before the connection closes.
pub const REFUSAL_LINGER: Duration = Duration::from_secs(1);

/// A connection on which both nodes agree.
#[derive(Debug, Clone, PartialEq)]
pub struct Session {
    /// The session, numbered at random by the decode node; every later frame carries it.
    pub id: u64,
    /// What the peer said of itself, on the decode node without its environment.
    pub peer: Introduction,
    /// Time of the last exchange of the handshake: one round trip and a hash.
    pub rtt: Duration,
}

/// The prefill node's side of the handshake, within `limit`. Not cancel safe.
pub async fn initiate<R, W>(
    reader: &mut FrameReader<R>,
    writer: &mut FrameWriter<W>,
    ours: &Introduction,
    token: Option<&Token>,
    limit: Duration,
) -> Result<Session, WireError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let agreed = agree_as_prefill_node(reader, writer, ours, token);
    let outcome = within(limit, None, agreed).await;
    refuse_on_error(reader, writer, outcome).await
}

/// The decode node's side of the handshake, within `limit`. Not cancel safe.
pub async fn respond<R, W>(
    reader: &mut FrameReader<R>,
    writer: &mut FrameWriter<W>,
    ours: &Introduction,
    token: Option<&Token>,
    limit: Duration,
) -> Result<Session, WireError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let agreed = agree_as_decode_node(reader, writer, ours, token);
    let outcome = within(limit, Some(HANDSHAKE_FLAG), agreed).await;
    refuse_on_error(reader, writer, outcome).await
}

async fn agree_as_prefill_node<R, W>(
    reader: &mut FrameReader<R>,
    writer: &mut FrameWriter<W>,
    ours: &Introduction,
    token: Option<&Token>,
) -> Result<Session, WireError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let hello = hello(ours, token);
    writer.write_control(Kind::Hello, 0, 0, &hello).await?;
    let (header, theirs) = reader.expect::<Hello>(Kind::Hello).await?;
    compatible(ours, &theirs.introduction)?;
    let challenge = Challenge {
        session: header.session,
        prefill_nonce: hello.nonce,
        decode_nonce: theirs.nonce,
    };
    tokens_on_both_sides(token.is_some(), theirs.auth_required)?;
    check_proof(token, Prover::DecodeNode, &challenge, theirs.proof)?;

    let proof = token.map(|token| token.prove(Prover::PrefillNode, &challenge));
    let asked = Instant::now();
    let auth = Auth { proof };
    writer
        .write_control(Kind::Auth, header.session, 0, &auth)
        .await?;
    let ready = reader.expect_empty(Kind::Ready).await?;
    let rtt = asked.elapsed();
    same_session(ready.session, header.session)?;
    Ok(Session {
        id: header.session,
        peer: theirs.introduction,
        rtt,
    })
}

async fn agree_as_decode_node<R, W>(
    reader: &mut FrameReader<R>,
    writer: &mut FrameWriter<W>,
    ours: &Introduction,
    token: Option<&Token>,
) -> Result<Session, WireError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (_, mut theirs) = reader.expect::<Hello>(Kind::Hello).await?;
    // It goes into no record here, and its parsed form can be a hundred times what was sent: nobody
    // who has proven nothing yet may have that kept.
    theirs.introduction.environment = serde_json::Value::Null;
    compatible(&theirs.introduction, ours)?;
    tokens_on_both_sides(theirs.auth_required, token.is_some())?;

    let mut hello = hello(ours, token);
    let challenge = Challenge {
        session: rand::random(),
        prefill_nonce: theirs.nonce,
        decode_nonce: hello.nonce,
    };
    hello.proof = token.map(|token| token.prove(Prover::DecodeNode, &challenge));
    let asked = Instant::now();
    writer
        .write_control(Kind::Hello, challenge.session, 0, &hello)
        .await?;
    let (header, auth) = reader.expect::<Auth>(Kind::Auth).await?;
    let rtt = asked.elapsed();
    same_session(header.session, challenge.session)?;
    check_proof(token, Prover::PrefillNode, &challenge, auth.proof)?;
    writer
        .write_empty(Kind::Ready, challenge.session, 0)
        .await?;
    Ok(Session {
        id: challenge.session,
        peer: theirs.introduction,
        rtt,
    })
}

async fn within<T>(
    limit: Duration,
    flag: Option<&'static str>,
    agreed: impl Future<Output = Result<T, WireError>>,
) -> Result<T, WireError> {
    timeout(limit, agreed)
        .await
        .unwrap_or(Err(WireError::Timeout {
            what: "the handshake",
            after: limit,
            flag,
        }))
}

/// Tells the peer why its handshake failed, where it is to be told.
async fn refuse_on_error<R, W>(
    reader: &mut FrameReader<R>,
    writer: &mut FrameWriter<W>,
    outcome: Result<Session, WireError>,
) -> Result<Session, WireError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    if let Err(error) = &outcome
        && let Some(code) = error.refuse_code()
    {
        let reason = error.to_string();
        refuse(reader, writer, Refuse { code, reason }).await;
    }
    outcome
}

/// Refuses a connection, a busy or draining node's before its handshake too, and gives the peer
/// up to [`REFUSAL_LINGER`] to read the reason; the connection is of no use afterwards.
pub async fn refuse<R, W>(reader: &mut FrameReader<R>, writer: &mut FrameWriter<W>, refuse: Refuse)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let tell = async {
        let told = writer.write_control(Kind::Refuse, 0, 0, &refuse).await;
        if told.is_ok() && writer.shutdown().await.is_ok() {
            reader.drain(MAX_HELLO_BYTES).await;
        }
    };
    // A peer that cannot be told, or does not close, changes nothing: it is refused already.
    let _ = timeout(REFUSAL_LINGER, tell).await;
}

fn hello(ours: &Introduction, token: Option<&Token>) -> Hello {
    Hello {
        introduction: ours.clone(),
        auth_required: token.is_some(),
        nonce: Hex32(rand::random()),
        proof: None,
    }
}

/// Whether two nodes may work together: the same model in the same weight format, the same
/// cache layout, and room for at least one token of a layer in a piece. Nodes without a model
/// measure the link, and do so only with their like.
pub fn compatible(prefill: &Introduction, decode: &Introduction) -> Result<(), WireError> {
    let identity = |node: &Introduction| {
        let model = node.model.as_ref();
        model.map(|model| (model.weights.clone(), model.fingerprint.clone()))
    };
    if identity(prefill) != identity(decode) {
        return Err(WireError::ModelMismatch {
            prefill: describe_model(prefill),
            decode: describe_model(decode),
        });
    }
    if prefill.layout != decode.layout {
        let (prefill, decode) =
            describe_difference(prefill.layout.as_ref(), decode.layout.as_ref());
        return Err(WireError::LayoutMismatch { prefill, decode });
    }
    let token_bytes = largest_token_bytes(prefill.layout.as_ref());
    for (node, introduction) in [("prefill", prefill), ("decode", decode)] {
        let got = introduction.limits.max_piece_bytes;
        if got < token_bytes {
            return Err(WireError::PieceLimit {
                node,
                got,
                want: token_bytes,
            });
        }
    }
    Ok(())
}

/// Bytes of one token in the widest layer in the widest dtype; at least one.
fn largest_token_bytes(layout: Option<&CacheLayout>) -> u64 {
    let layers = layout.map_or(0, |layout| layout.layers.len());
    (0..layers)
        .filter_map(|layer| layout?.bytes_per_token(layer, KvDtype::F32.bytes()))
        .max()
        .unwrap_or(0)
        .max(1)
}

fn describe_model(node: &Introduction) -> String {
    match &node.model {
        None => "no model (link only)".to_owned(),
        Some(model) => printable(&format!(
            "{} (weights {}, fingerprint {})",
            model.name, model.weights, model.fingerprint
        )),
    }
}

/// Both layouts in words, at the first place where they differ.
fn describe_difference(
    prefill: Option<&CacheLayout>,
    decode: Option<&CacheLayout>,
) -> (String, String) {
    let (Some(prefill), Some(decode)) = (prefill, decode) else {
        let presence = |layout: Option<&CacheLayout>| match layout {
            None => "no cache".to_owned(),
            Some(layout) => format!("{} layers", layout.layers.len()),
        };
        return (presence(prefill), presence(decode));
    };
    if prefill.arrangement != decode.arrangement {
        return (
            printable(&prefill.arrangement),
            printable(&decode.arrangement),
        );
    }
    if prefill.layers.len() != decode.layers.len() {
        let count = |layout: &CacheLayout| format!("{} layers", layout.layers.len());
        return (count(prefill), count(decode));
    }
    let words = |at: usize, layer: &LayerLayout| {
        let window = match layer.window {
            None => "no window".to_owned(),
            Some(tokens) => format!("a window of {tokens}"),
        };
        format!(
            "{} KV heads of {} with {window} in layer {at}",
            layer.n_kv_heads, layer.head_dim
        )
    };
    let mut pairs = prefill.layers.iter().zip(&decode.layers).enumerate();
    match pairs.find(|(_, (ours, theirs))| ours != theirs) {
        Some((at, (ours, theirs))) => (words(at, ours), words(at, theirs)),
        None => ("the same".to_owned(), "the same".to_owned()),
    }
}

/// A node that holds a token works with no peer that has none.
fn tokens_on_both_sides(prefill: bool, decode: bool) -> Result<(), WireError> {
    let (has, lacks) = match (prefill, decode) {
        (true, false) => ("prefill", "decode"),
        (false, true) => ("decode", "prefill"),
        (true, true) | (false, false) => return Ok(()),
    };
    Err(WireError::Auth(format!(
        "the {has} node demands a shared token and the {lacks} node has none: give the {lacks} node the same one with --token-file or DISAGG_TOKEN"
    )))
}

fn check_proof(
    token: Option<&Token>,
    prover: Prover,
    challenge: &Challenge,
    proof: Option<Hex32>,
) -> Result<(), WireError> {
    let Some(token) = token else {
        return Ok(());
    };
    if proof.is_some_and(|proof| token.verify(prover, challenge, &proof)) {
        return Ok(());
    }
    let prover = match prover {
        Prover::PrefillNode => "prefill",
        Prover::DecodeNode => "decode",
    };
    Err(WireError::Auth(format!(
        "the {prover} node did not prove that it holds the shared token: give both nodes the same one with --token-file or DISAGG_TOKEN"
    )))
}

fn same_session(got: u64, want: u64) -> Result<(), WireError> {
    if got == want {
        return Ok(());
    }
    Err(WireError::ForeignSession { got, want })
}

#[cfg(test)]
mod tests;
