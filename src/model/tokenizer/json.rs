//! The filter `tojson` of chat templates: JSON as Python's `json.dumps` writes it. minijinja's own
//! escapes for HTML.

use std::io;

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

/// Widest indent of JSON; Python knows no limit, templates use 2 and 4.
const MAX_INDENT: usize = 16;

/// Most that one `tojson` may give: what shares its parts can be written out without end.
const MAX_JSON_BYTES: usize = 1 << 20;

/// Deepest nesting of lists and dicts in JSON: writing it recurses.
const MAX_JSON_DEPTH: usize = 128;

/// The filter; of its options `indent` is supported.
pub fn to_json(value: &Value, indent: Option<usize>, options: Kwargs) -> Result<String, Error> {
    let failed = |why: String| Error::new(ErrorKind::InvalidOperation, why);
    let indent = indent.or(options.get("indent")?);
    if options.get::<Option<bool>>("ensure_ascii")? == Some(true) {
        return Err(failed("tojson with ensure_ascii is not supported".into()));
    }
    options.assert_all_used()?;
    if indent.is_some_and(|width| width > MAX_INDENT) {
        return Err(failed(format!("tojson with indent over {MAX_INDENT}")));
    }
    let mut json = Limited(Vec::new());
    let python = Python {
        indent,
        depth: 0,
        is_empty: true,
    };
    (value.serialize(&mut Serializer::with_formatter(&mut json, python)))
        .map_err(|e| failed(e.to_string()))?;
    String::from_utf8(json.0).map_err(|e| failed(e.to_string()))
}

/// Text that does not grow beyond [`MAX_JSON_BYTES`].
struct Limited(Vec<u8>);

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_JSON_BYTES {
            return Err(io::Error::other(format!(
                "tojson gives more than {MAX_JSON_BYTES} bytes"
            )));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A space behind each comma and colon, or each item on a line of its own.
struct Python {
    indent: Option<usize>,
    depth: usize,
    /// Whether what was begun last has no item yet.
    is_empty: bool,
}

impl Python {
    fn begin<W: io::Write + ?Sized>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.is_empty = true;
        if self.depth > MAX_JSON_DEPTH {
            return Err(io::Error::other(format!(
                "tojson of something {MAX_JSON_DEPTH} levels deep"
            )));
        }
        writer.write_all(bracket)
    }

    fn end<W: io::Write + ?Sized>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if !self.is_empty {
            self.new_line(writer)?;
        }
        self.is_empty = false;
        writer.write_all(bracket)
    }

    fn item<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.is_empty = false;
        let comma: &[u8] = match (first, self.indent) {
            (true, _) => b"",
            (false, None) => b", ",
            (false, Some(_)) => b",",
        };
        writer.write_all(comma)?;
        self.new_line(writer)
    }

    fn new_line<W: io::Write + ?Sized>(&self, writer: &mut W) -> io::Result<()> {
        match self.indent {
            None => Ok(()),
            Some(width) => write!(writer, "\n{:1$}", "", width * self.depth),
        }
    }
}

impl Formatter for Python {
    fn begin_array<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin(writer, b"[")
    }

    fn end_array<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.end(writer, b"]")
    }

    fn begin_array_value<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.item(writer, first)
    }

    fn begin_object<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin(writer, b"{")
    }

    fn end_object<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.end(writer, b"}")
    }

    fn begin_object_key<W: io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.item(writer, first)
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}
