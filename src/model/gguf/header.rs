//! A look through a GGUF header before candle reads it: candle takes memory by lengths that the
//! file names, tens of bytes for every byte of a list, and divides by the alignment.
//!
//! Nothing is kept but names; what values mean is left to candle and the parent module.

use std::collections::HashSet;
use std::io::{self, BufRead, Read};

/// Longest header: the vocabulary and the merges of the largest tokenizers are below 20 MB.
const MAX_HEADER_BYTES: u64 = 64 << 20;

/// Most metadata, and most tensors: far above any real file.
const MAX_ENTRIES: u64 = 1 << 16;

/// Most values in all lists together, each 32 bytes in candle's hands; the largest tokenizers have
/// 1.3 million.
const MAX_LISTED_VALUES: u64 = 1 << 22;

/// Longest key, as the format has it.
const MAX_NAME_BYTES: u64 = (1 << 16) - 1;

/// Lists in lists: no known file has any.
const MAX_LIST_DEPTH: u32 = 4;

/// Most dimensions of a tensor, as the format has it.
const MAX_DIMENSIONS: u32 = 4;

/// Largest alignment of tensors: that of the largest pages.
const MAX_ALIGNMENT: u64 = 1 << 30;

/// The key that says where tensors may begin.
const ALIGNMENT: &str = "general.alignment";

/// Value types of the format.
const STRING: u32 = 8;
const LIST: u32 = 9;

/// Looks through the header of a file of so many bytes; the error says what is wrong with it.
pub(super) fn check(input: impl BufRead, file_bytes: u64) -> Result<(), String> {
    let mut header = Header {
        input,
        position: 0,
        end: file_bytes.min(MAX_HEADER_BYTES),
        file_bytes,
        length_bytes: 8,
        listed_values: 0,
    };
    header.entries()
}

struct Header<I> {
    input: I,
    position: u64,
    /// Where the header has to end.
    end: u64,
    file_bytes: u64,
    /// Size of a length; the first version had shorter ones.
    length_bytes: usize,
    listed_values: u64,
}

impl<I: BufRead> Header<I> {
    fn entries(&mut self) -> Result<(), String> {
        self.u32()?; // The magic, which candle checks.
        if self.u32()? == 1 {
            self.length_bytes = 4;
        }
        let tensors = self.count("tensors", MAX_ENTRIES)?;
        let metadata = self.count("metadata", MAX_ENTRIES)?;
        let mut keys = HashSet::new();
        for _ in 0..metadata {
            let key = self.name("metadata", &mut keys)?;
            let kind = self.u32()?;
            match key == ALIGNMENT {
                true => self.alignment(kind)?,
                false => self.value(kind, 0)?,
            }
        }
        let mut names = HashSet::new();
        for _ in 0..tensors {
            let name = self.name("tensor", &mut names)?;
            let dimensions = self.u32()?;
            if dimensions > MAX_DIMENSIONS {
                return Err(format!(
                    "tensor {name} has {dimensions} dimensions, wanted at most {MAX_DIMENSIONS}"
                ));
            }
            for _ in 0..dimensions {
                self.length()?;
            }
            self.skip(4 + 8)?; // Format and offset.
        }
        Ok(())
    }

    /// A name that has not come before.
    fn name(&mut self, what: &str, earlier: &mut HashSet<String>) -> Result<String, String> {
        let bytes = self.count("bytes of a name", MAX_NAME_BYTES)?;
        self.room_for(bytes)?;
        let mut name = vec![0; bytes as usize];
        self.read(&mut name)?;
        let name = String::from_utf8_lossy(&name).into_owned();
        match earlier.insert(name.clone()) {
            true => Ok(name),
            false => Err(format!("{what} {name} stands twice in the file")),
        }
    }

    fn value(&mut self, kind: u32, depth: u32) -> Result<(), String> {
        match (kind, size_of_kind(kind)) {
            (_, Some(bytes)) => self.skip(bytes),
            (STRING, _) => {
                let bytes = self.length()?;
                self.skip(bytes)
            }
            (LIST, _) if depth == MAX_LIST_DEPTH => {
                Err(format!("lists in lists deeper than {MAX_LIST_DEPTH}"))
            }
            (LIST, _) => {
                let kind = self.u32()?;
                let length = self.length()?;
                self.listed_values = self.listed_values.saturating_add(length);
                if self.listed_values > MAX_LISTED_VALUES {
                    return Err(format!(
                        "{} values in lists, wanted at most {MAX_LISTED_VALUES}",
                        self.listed_values
                    ));
                }
                match size_of_kind(kind) {
                    Some(bytes) => self.skip(bytes * length),
                    None => (0..length).try_for_each(|_| self.value(kind, depth + 1)),
                }
            }
            (other, _) => Err(format!("a value of type {other}, wanted 0 to 12")),
        }
    }

    /// The alignment, in any of the integers that candle takes it in.
    fn alignment(&mut self, kind: u32) -> Result<(), String> {
        let bytes = match kind {
            0..=5 => size_of_kind(kind).unwrap_or(4) as usize,
            other => return Err(format!("{ALIGNMENT} is of type {other}, wanted u32 (4)")),
        };
        let mut value = [0; 8];
        self.read(&mut value[..bytes])?;
        let alignment = u64::from_le_bytes(value);
        match alignment.is_power_of_two() && alignment <= MAX_ALIGNMENT {
            true => Ok(()),
            false => Err(format!(
                "{ALIGNMENT} is {alignment}, wanted a power of two of at most {MAX_ALIGNMENT}"
            )),
        }
    }

    fn count(&mut self, what: &str, most: u64) -> Result<u64, String> {
        let count = self.length()?;
        match count <= most {
            true => Ok(count),
            false => Err(format!("{count} {what}, wanted at most {most}")),
        }
    }

    fn length(&mut self) -> Result<u64, String> {
        let mut length = [0; 8];
        self.read(&mut length[..self.length_bytes])?;
        Ok(u64::from_le_bytes(length))
    }

    fn u32(&mut self) -> Result<u32, String> {
        let mut number = [0; 4];
        self.read(&mut number)?;
        Ok(u32::from_le_bytes(number))
    }

    fn read(&mut self, into: &mut [u8]) -> Result<(), String> {
        self.room_for(into.len() as u64)?;
        (self.input.read_exact(into)).map_err(|e| format!("at byte {}: {e}", self.position))?;
        self.position += into.len() as u64;
        Ok(())
    }

    fn skip(&mut self, bytes: u64) -> Result<(), String> {
        self.room_for(bytes)?;
        let skipped = io::copy(&mut (&mut self.input).take(bytes), &mut io::sink());
        match skipped {
            Ok(skipped) if skipped == bytes => {
                self.position += bytes;
                Ok(())
            }
            Ok(_) => Err("the file became shorter while it was read".to_owned()),
            Err(error) => Err(format!("at byte {}: {error}", self.position)),
        }
    }

    /// Refuses what reaches behind the end of the file or of the longest header.
    fn room_for(&self, bytes: u64) -> Result<(), String> {
        let left = self.end - self.position;
        match bytes <= left {
            true => Ok(()),
            false if self.end < self.file_bytes => Err(format!(
                "a header of more than {MAX_HEADER_BYTES} bytes is not read"
            )),
            false => Err(format!(
                "at byte {} it announces {bytes} bytes more, the file has {left}",
                self.position
            )),
        }
    }
}

/// Bytes of a number or a flag.
fn size_of_kind(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
