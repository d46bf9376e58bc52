//! Prompt files, good and bad.

use std::io::Write;

use super::*;

fn strict(input: &[u8]) -> Result<Vec<PromptText>, WorkloadError> {
    read_prompts(input, "p.jsonl", PlainText::Refused)
}

/// The line and problem that `input` is refused for; the message must name both.
fn problem(input: &[u8]) -> (usize, LineProblem) {
    let error = strict(input).unwrap_err();
    let message = error.to_string();
    match error {
        WorkloadError::Line {
            file,
            line,
            problem,
        } => {
            assert_eq!(message, format!("{file}: line {line}: {problem}"));
            assert_eq!(file, "p.jsonl");
            (line, problem)
        }
        other => panic!("{other}"),
    }
}

fn text(name: &str, text: &str, output_tokens: Option<u32>) -> PromptText {
    PromptText {
        name: name.into(),
        text: text.into(),
        output_tokens,
    }
}

#[test]
fn reads_objects_and_skips_blank_lines_and_unknown_keys() {
    let input = "\u{feff}{\"prompt\": \"one\", \"max_tokens\": 50}\r\n\n  \t\n\
        {\"name\": \"second\", \"prompt\": \"two\\nlines\", \"temperature\": [1]}\n\
        {\"prompt\": \"\u{65e5}\u{672c}\", \"max_tokens\": null, \"name\": null}";
    let expected = [
        text("line-1", "one", Some(50)),
        text("second", "two\nlines", None),
        text("line-5", "\u{65e5}\u{672c}", None),
    ];
    assert_eq!(strict(input.as_bytes()).unwrap(), expected);
}

#[test]
fn plain_lines_are_prompts_where_accepted() {
    let input = b"What is a KV cache?\r\n\n[1, 2]\n {\"prompt\": \"three\"}\n";
    let expected = [
        text("line-1", "What is a KV cache?", None),
        text("line-3", "[1, 2]", None),
        text("line-4", "three", None),
    ];
    assert_eq!(
        read_prompts(&input[..], "stdin", PlainText::Accepted).unwrap(),
        expected
    );
    assert!(matches!(problem(input), (1, LineProblem::NotJson(_))));
    let broken = read_prompts(&b"fine\n{oops\n"[..], "stdin", PlainText::Accepted);
    assert!(
        broken
            .unwrap_err()
            .to_string()
            .starts_with("stdin: line 2: not valid JSON")
    );
}

#[test]
fn each_bad_line_has_its_problem() {
    let wrong = |key, got, wanted| LineProblem::WrongType { key, got, wanted };
    let bad_max = |shown: &str| LineProblem::BadMaxTokens(shown.into());
    let long_name = format!(r#"{{"prompt": "x", "name": "{}"}}"#, "n".repeat(65));
    let cases: Vec<(&str, LineProblem)> = vec![
        (r#"["prompt"]"#, LineProblem::NotAnObject("an array")),
        (r#""prompt""#, LineProblem::NotAnObject("a string")),
        ("null", LineProblem::NotAnObject("null")),
        ("{}", LineProblem::NoPrompt),
        (r#"{"prompt": null}"#, LineProblem::NoPrompt),
        (r#"{"prompt": ""}"#, LineProblem::BlankPrompt),
        (r#"{"prompt": " \n"}"#, LineProblem::BlankPrompt),
        (r#"{"prompt": 5}"#, wrong("prompt", "a number", "a string")),
        (
            r#"{"prompt": {}}"#,
            wrong("prompt", "an object", "a string"),
        ),
        (
            r#"{"prompt": "x", "max_tokens": "50"}"#,
            wrong("max_tokens", "a string", "a number"),
        ),
        (
            r#"{"prompt": "x", "max_tokens": true}"#,
            wrong("max_tokens", "a boolean", "a number"),
        ),
        (r#"{"prompt": "x", "max_tokens": 0}"#, bad_max("0")),
        (r#"{"prompt": "x", "max_tokens": -1}"#, bad_max("-1")),
        (r#"{"prompt": "x", "max_tokens": 1.5}"#, bad_max("1.5")),
        (
            r#"{"prompt": "x", "max_tokens": 1000001}"#,
            bad_max("1000001"),
        ),
        (
            r#"{"prompt": "x", "max_tokens": 4294967297}"#,
            bad_max("4294967297"),
        ),
        (
            r#"{"prompt": "x", "name": 1}"#,
            wrong("name", "a number", "a string"),
        ),
        (r#"{"prompt": "x", "name": " "}"#, LineProblem::BadName),
        (
            r#"{"prompt": "x", "name": "a\u001b[2J"}"#,
            LineProblem::BadName,
        ),
        (&long_name, LineProblem::BadName),
    ];
    for (line, expected) in cases {
        let input = format!("{{\"prompt\": \"fine\"}}\n\n{line}\n");
        assert_eq!(problem(input.as_bytes()), (3, expected), "{line}");
    }
}

#[test]
fn broken_json_is_named_not_parsed_further() {
    let deep = format!("{{\"prompt\": {}", "[".repeat(100_000));
    for broken in [
        "{",
        "{\"prompt\": \"x\"",
        "{\"prompt\": \"x\"} extra",
        "{'prompt': 1}",
        &deep,
    ] {
        assert!(
            matches!(problem(broken.as_bytes()), (1, LineProblem::NotJson(_))),
            "{broken:.40}"
        );
    }
}

#[test]
fn bytes_that_are_no_text_are_refused() {
    assert_eq!(
        problem(b"{\"prompt\": \"ok\"}\n\xff\xfe\n"),
        (2, LineProblem::NotUtf8)
    );
}

#[test]
fn names_are_unique() {
    let taken = |name: &str| LineProblem::DuplicateName {
        name: name.into(),
        first_line: 1,
    };
    let same = b"{\"prompt\":\"x\",\"name\":\"a\"}\n{\"prompt\":\"y\",\"name\":\"a\"}";
    assert_eq!(problem(same), (2, taken("a")));
    let default = b"{\"prompt\":\"x\",\"name\":\"line-2\"}\n{\"prompt\":\"y\"}";
    assert_eq!(problem(default), (2, taken("line-2")));
}

#[test]
fn a_line_at_the_limit_passes_and_one_above_is_refused() {
    let frame = r#"{"prompt": ""}"#.len();
    let line = |n: usize, end: &str| format!("{{\"prompt\": \"{}\"}}{end}", "x".repeat(n - frame));
    for end in ["\n", "\r\n"] {
        let two = line(MAX_LINE_BYTES, end).repeat(2);
        let names: Vec<String> = (strict(two.as_bytes()).unwrap().into_iter())
            .map(|prompt| prompt.name)
            .collect();
        assert_eq!(names, ["line-1", "line-2"], "{end:?}");
    }
    assert_eq!(
        strict(line(MAX_LINE_BYTES, "").as_bytes()).unwrap().len(),
        1
    );
    for end in ["", "\n", "\r\n"] {
        let above = line(MAX_LINE_BYTES + 1, end);
        let refused = problem(above.as_bytes());
        assert_eq!(refused, (1, LineProblem::LineTooLong), "{end:?}");
    }
}

#[test]
fn endless_input_is_cut_off() {
    let endless = read_prompts(
        BufReader::new(io::repeat(b'x')),
        "stdin",
        PlainText::Accepted,
    );
    assert!(
        endless
            .unwrap_err()
            .to_string()
            .contains("longer than 1048576 bytes")
    );
    let line = [vec![b'x'; MAX_LINE_BYTES - 1], vec![b'\n']].concat();
    let lines = line.repeat(MAX_SOURCE_BYTES / MAX_LINE_BYTES);
    let at_limit = read_prompts(lines.as_slice(), "stdin", PlainText::Accepted);
    assert_eq!(at_limit.unwrap().len(), 64);
    let above = [lines.as_slice(), b"\n"].concat();
    let error = read_prompts(above.as_slice(), "stdin", PlainText::Accepted).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("stdin: line 65: more than 67108864 bytes")
    );
}

#[test]
fn too_many_prompts_are_refused() {
    let lines = "{\"prompt\":\"x\"}\n".repeat(MAX_PROMPTS + 1);
    assert_eq!(
        problem(lines.as_bytes()),
        (MAX_PROMPTS + 1, LineProblem::TooManyPrompts)
    );
}

#[test]
fn nothing_but_blank_lines_is_refused() {
    for input in ["", "\n", " \r\n\n\t"] {
        let error = strict(input.as_bytes()).unwrap_err();
        assert!(
            matches!(&error, WorkloadError::NoPrompts { file } if file == "p.jsonl"),
            "{error}"
        );
        assert!(
            error.to_string().contains(r#"{"prompt": "..."}"#),
            "{error}"
        );
    }
}

#[test]
fn files_are_read_and_named_when_they_cannot_be() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prompts.jsonl");
    let error = read_path(&path, PlainText::Refused).unwrap_err();
    assert!(matches!(error, WorkloadError::Read { .. }), "{error}");
    assert!(error.to_string().contains("prompts.jsonl"), "{error}");
    let error = read_path(folder.path(), PlainText::Refused).unwrap_err();
    assert!(matches!(error, WorkloadError::Read { .. }), "{error}");
    let mut file = File::create(&path).unwrap();
    file.write_all(b"{\"prompt\": \"hello\"}\n").unwrap();
    assert_eq!(
        read_path(&path, PlainText::Refused).unwrap(),
        [text("line-1", "hello", None)]
    );
}
