//! SentencePiece's BPE from its pieces and their scores, in the `tokenizers` crate.
//!
//! As transformers converts it: every way to cut a piece in two others is a merge, those of the
//! piece with the higher score first; what no piece covers becomes bytes. Text gets a space in
//! front, and again behind every special token.

use std::collections::HashMap;

use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as DecoderSequence;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Merges};
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Prepend, Replace, Sequence};
use tokenizers::{DecoderWrapper, NormalizerWrapper};

use super::bpe;

/// What stands for a space in a piece.
const SPACE: &str = "\u{2581}";

/// Longest piece, in characters, that merges are made for: SentencePiece makes 16 unless told
/// otherwise, and the work grows with the square.
const MAX_PIECE_CHARS: usize = 256;

/// Most merges of a vocabulary: that of Llama 2, 32,000 pieces, has about 61,000. Pieces of one
/// letter, each longer by one than the last, have as many as the square of their number.
const MAX_MERGES: usize = 1 << 20;

/// What a piece is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl PieceKind {
    /// GGUF counts them as SentencePiece does; an unheard-of kind is never made from text.
    pub fn from_gguf(number: i64) -> Self {
        match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            6 => Self::Byte,
            _ => Self::Unused,
        }
    }
}

/// An entry of the vocabulary; its place is its id.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    pub text: &'a str,
    pub score: f32,
    pub kind: PieceKind,
}

/// What else the model says.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Stands for what no piece covers; a piece of kind unknown where not said.
    pub unknown: Option<u32>,
    pub add_space_prefix: bool,
    pub remove_extra_whitespaces: bool,
}

/// Builds the tokenizer.
pub fn build(pieces: &[Piece], options: &Options) -> Result<tokenizers::Tokenizer, String> {
    let unknown = match options.unknown {
        Some(id) => pieces.get(id as usize),
        None => pieces.iter().find(|piece| piece.kind == PieceKind::Unknown),
    };
    let has_all_bytes = pieces.iter().filter(|p| p.kind == PieceKind::Byte).count() >= 256;
    if unknown.is_none() && !has_all_bytes {
        return Err(
            "a SentencePiece vocabulary with neither an unknown token nor all bytes: text \
                    that it does not cover would be lost"
                .into(),
        );
    }
    let vocabulary = (pieces.iter().zip(0..))
        .map(|(piece, id)| (piece.text.to_string(), id))
        .collect();
    let mut builder = BPE::builder().fuse_unk(true).byte_fallback(has_all_bytes);
    if let Some(unknown) = unknown {
        builder = builder.unk_token(unknown.text.to_string());
    }
    let model = bpe::build(vocabulary, merges(pieces)?, builder)?;
    let bad = |e: tokenizers::Error| format!("tokenizer: {e}");
    let mut inner = tokenizers::Tokenizer::new(model);
    inner
        .with_normalizer(Some(normalizer(options).map_err(bad)?))
        .map_err(bad)?;
    inner.with_decoder(Some(decoder(options).map_err(bad)?));
    let whole = pieces.iter().filter_map(|piece| match piece.kind {
        PieceKind::Control | PieceKind::Unknown => Some(bpe::whole_token(piece.text, true)),
        PieceKind::UserDefined => Some(bpe::whole_token(piece.text, false)),
        PieceKind::Normal | PieceKind::Unused | PieceKind::Byte => None,
    });
    inner.add_tokens(whole).map_err(bad)?;
    Ok(inner)
}

/// Every way to make a piece of two others, in the order in which they are tried.
fn merges(pieces: &[Piece]) -> Result<Merges, String> {
    let normal: HashMap<&str, usize> = (pieces.iter().enumerate())
        .filter(|(_, piece)| piece.kind == PieceKind::Normal)
        .map(|(id, piece)| (piece.text, id))
        .collect();
    let mut found = Vec::new();
    for (&text, &id) in &normal {
        let chars = text.chars().count();
        if chars > MAX_PIECE_CHARS {
            return Err(format!(
                "SentencePiece token {id} has {chars} characters, wanted {MAX_PIECE_CHARS} at most"
            ));
        }
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if normal.contains_key(left) && normal.contains_key(right) {
                found.push((id, left, right));
            }
        }
        if found.len() > MAX_MERGES {
            return Err(format!(
                "its tokens can be made of others in more than {MAX_MERGES} ways: put the model's \
                 tokenizer.json beside the file"
            ));
        }
    }
    // Among those of one piece, the longer left part first: as in the published tokenizer.json.
    found.sort_unstable_by(|(a, a_left, _), (b, b_left, _)| {
        (pieces[*b].score.total_cmp(&pieces[*a].score))
            .then(a.cmp(b))
            .then(b_left.len().cmp(&a_left.len()))
    });
    Ok((found.into_iter())
        .map(|(_, left, right)| (left.to_string(), right.to_string()))
        .collect())
}

fn normalizer(options: &Options) -> tokenizers::Result<NormalizerWrapper> {
    let replaced = |pattern: ReplacePattern, by: &str| Replace::new(pattern, by);
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if options.remove_extra_whitespaces {
        let regex = |pattern: &str| ReplacePattern::Regex(pattern.into());
        steps.push(replaced(regex(r"\A +| +\z"), "")?.into());
        steps.push(replaced(regex(" {2,}"), " ")?.into());
    }
    if options.add_space_prefix {
        steps.push(Prepend::new(SPACE.into()).into());
    }
    steps.push(replaced(" ".into(), SPACE)?.into());
    Ok(Sequence::new(steps).into())
}

fn decoder(options: &Options) -> tokenizers::Result<DecoderWrapper> {
    let mut steps: Vec<DecoderWrapper> = vec![
        Replace::new(SPACE, " ")?.into(),
        ByteFallback::new().into(),
        Fuse::new().into(),
    ];
    if options.add_space_prefix {
        steps.push(Strip::new(' ', 1, 0).into());
    }
    Ok(DecoderSequence::new(steps).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_beyond_all_measure_are_refused() {
        let letters = 'A'..='Z';
        let texts: Vec<String> = (letters.chain('a'..='z'))
            .flat_map(|letter| (1..=MAX_PIECE_CHARS).map(move |n| letter.to_string().repeat(n)))
            .collect();
        let piece = |text| Piece {
            text,
            score: 0.0,
            kind: PieceKind::Normal,
        };
        let mut pieces: Vec<Piece> = texts.iter().map(|text| piece(text)).collect();
        let few = merges(&pieces[..MAX_PIECE_CHARS]).unwrap();
        assert_eq!(few.len(), MAX_PIECE_CHARS * (MAX_PIECE_CHARS - 1) / 2);
        pieces[0].kind = PieceKind::Unknown;
        let options = Options {
            unknown: Some(0),
            add_space_prefix: true,
            remove_extra_whitespaces: false,
        };
        let error = build(&pieces, &options).err().unwrap();
        assert!(error.contains("more than 1048576 ways"), "{error}");
    }
}
