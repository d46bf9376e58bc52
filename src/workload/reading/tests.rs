//! Prompt files, good and bad.

use std::io::Write;

use proptest::prelude::*;

use super::*;
use crate::workload::{Prompt, Role, tokenize};

fn strict(input: &[u8]) -> Result<Vec<PromptText>, WorkloadError> {
    read_prompts(input, "p.jsonl", PlainText::Refused)
}

/// Where and why `input` is refused; the message must say both.
fn refused(input: &[u8]) -> (Place, Problem) {
    let error = strict(input).unwrap_err();
    let message = error.to_string();
    match error {
        WorkloadError::Content {
            file,
            place,
            problem,
        } => {
            assert_eq!(message, format!("{file}: {place}: {problem}"));
            assert_eq!(file, "p.jsonl");
            (place, problem)
        }
        other => panic!("{other}"),
    }
}

/// The line and problem that `input` is refused for.
fn problem(input: &[u8]) -> (usize, Problem) {
    match refused(input) {
        (Place::Line(line), problem) => (line, problem),
        other => panic!("{other:?}"),
    }
}

fn text(name: &str, text: &str, output_tokens: Option<u32>) -> PromptText {
    PromptText {
        name: name.into(),
        turns: vec![Turn::of_user(text)],
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
    assert!(matches!(problem(input), (1, Problem::NotJson(_))));
    let array = read_prompts(
        &b"[\n{\"prompt\": \"one\"}]"[..],
        "stdin",
        PlainText::Accepted,
    );
    assert_eq!(array.unwrap(), [text("item-1", "one", None)]);
    let line = read_prompts(&b"[1, 2]\n"[..], "stdin", PlainText::Accepted);
    assert_eq!(line.unwrap(), [text("line-1", "[1, 2]", None)]);
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
    let wrong = |key, got, wanted| Problem::WrongType { key, got, wanted };
    let bad_max = |shown: &str| Problem::BadMaxTokens(shown.into());
    let long_name = format!(r#"{{"prompt": "x", "name": "{}"}}"#, "n".repeat(65));
    let cases: Vec<(&str, Problem)> = vec![
        (r#"["prompt"]"#, Problem::NotAnObject("an array")),
        (r#"{"messages": []}"#, Problem::NoUser),
        (r#""prompt""#, Problem::NotAnObject("a string")),
        ("null", Problem::NotAnObject("null")),
        ("{}", Problem::NoPrompt),
        (r#"{"prompt": null}"#, Problem::NoPrompt),
        (r#"{"prompt": ""}"#, Problem::BlankPrompt),
        (r#"{"prompt": " \n"}"#, Problem::BlankPrompt),
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
        (r#"{"prompt": "x", "name": " "}"#, Problem::BadName),
        (r#"{"prompt": "x", "name": "a\u001b[2J"}"#, Problem::BadName),
        (&long_name, Problem::BadName),
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
            matches!(problem(broken.as_bytes()), (1, Problem::NotJson(_))),
            "{broken:.40}"
        );
    }
}

#[test]
fn bytes_that_are_no_text_are_refused() {
    assert_eq!(
        problem(b"{\"prompt\": \"ok\"}\n\xff\xfe\n"),
        (2, Problem::NotUtf8)
    );
}

#[test]
fn names_are_unique() {
    let taken = |name: &str| Problem::DuplicateName {
        name: name.into(),
        first: Place::Line(1),
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
        let two = line(MAX_ITEM_BYTES, end).repeat(2);
        let names: Vec<String> = (strict(two.as_bytes()).unwrap().into_iter())
            .map(|prompt| prompt.name)
            .collect();
        assert_eq!(names, ["line-1", "line-2"], "{end:?}");
    }
    assert_eq!(
        strict(line(MAX_ITEM_BYTES, "").as_bytes()).unwrap().len(),
        1
    );
    for end in ["", "\n", "\r\n"] {
        let above = line(MAX_ITEM_BYTES + 1, end);
        let refused = problem(above.as_bytes());
        assert_eq!(refused, (1, Problem::TooLong), "{end:?}");
    }
}

#[test]
fn endless_input_is_cut_off() {
    let endless = read_prompts(io::repeat(b'x'), "stdin", PlainText::Accepted);
    assert!(
        endless
            .unwrap_err()
            .to_string()
            .contains("longer than 1048576 bytes")
    );
    let line = [vec![b'x'; MAX_ITEM_BYTES - 1], vec![b'\n']].concat();
    let lines = line.repeat(MAX_SOURCE_BYTES / MAX_ITEM_BYTES);
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
        (MAX_PROMPTS + 1, Problem::TooManyPrompts)
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

fn turn(role: Role, text: &str) -> Turn {
    Turn {
        role,
        text: text.into(),
    }
}

const SHARE_GPT: &str = r#"[
  {"id": "QWJhYvA_0", "conversations": [
    {"from": "system", "value": "Be short."},
    {"from": "human", "value": "What is a KV cache?"},
    {"from": "gpt", "value": "Keys and values."},
    {"from": "human", "value": "And why?"}]},
  {"id": 7, "max_tokens": 9, "conversations": [{"from": "human", "value": "Hello"}]}
]"#;

#[test]
fn a_sharegpt_conversation_goes_up_to_its_first_question() {
    let prompts = strict(SHARE_GPT.as_bytes()).unwrap();
    let opening = [
        turn(Role::System, "Be short."),
        turn(Role::User, "What is a KV cache?"),
    ];
    assert_eq!(prompts[0].name, "QWJhYvA_0");
    assert_eq!(prompts[0].turns, opening);
    assert_eq!(prompts[1], text("item-2", "Hello", Some(9)));
}

#[test]
fn openai_messages_go_up_to_the_last_question_in_lines_arrays_and_alone() {
    let object = r#"{"model": "m", "max_completion_tokens": 20, "messages": [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "it?"}]},
        {"role": "assistant", "content": "A cache."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Not used."}]}"#;
    let turns = [
        turn(Role::System, "Be short."),
        turn(Role::User, "What is it?"),
        turn(Role::Assistant, "A cache."),
        turn(Role::User, "Why?"),
    ];
    let line = object.replace('\n', " ");
    for (input, name) in [
        (object.to_owned(), "item-1"),
        (format!("[{object}]"), "item-1"),
        (line.clone(), "line-1"),
        (format!("{line}\n{{\"prompt\": \"x\"}}"), "line-1"),
    ] {
        let prompts = strict(input.as_bytes()).unwrap();
        assert_eq!(prompts[0].turns, turns, "{input}");
        assert_eq!(
            (prompts[0].name.as_str(), prompts[0].output_tokens),
            (name, Some(20))
        );
    }
}

#[test]
fn what_is_wrong_with_a_conversation_is_said_with_its_item_and_turn() {
    let in_turn = |number, problem| Problem::Turn {
        number,
        problem: Box::new(problem),
    };
    let wrong = |key, got, wanted| Problem::WrongType { key, got, wanted };
    let cases = [
        (
            r#"{"messages": "hi"}"#,
            wrong("messages", "a string", "an array of turns"),
        ),
        (
            r#"{"messages": ["hi"]}"#,
            in_turn(1, wrong("turn", "a string", "an object")),
        ),
        (
            r#"{"messages": [{"role": "user"}]}"#,
            in_turn(1, Problem::NoKey(["content", "value"])),
        ),
        (
            r#"{"conversations": [{"from": "human", "value": "a"}, {"value": "b"}]}"#,
            in_turn(2, Problem::NoKey(["role", "from"])),
        ),
        (
            r#"{"messages": [{"role": "tool", "content": "x"}]}"#,
            in_turn(1, Problem::BadRole("tool".into())),
        ),
        (
            r#"{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}"#,
            in_turn(1, Problem::NotText),
        ),
        (
            r#"{"messages": [{"role": "user", "content": 3}]}"#,
            in_turn(1, wrong("content", "a number", "a string")),
        ),
        (
            r#"{"messages": [{"role": "user", "content": " "}]}"#,
            Problem::BlankPrompt,
        ),
        (
            r#"{"conversations": [{"from": "gpt", "value": "x"}]}"#,
            Problem::NoUser,
        ),
        (r#"{"text": "x"}"#, Problem::NoPrompt),
        ("7", Problem::NotAnObject("a number")),
    ];
    for (item, expected) in cases {
        let input = format!("[{{\"prompt\": \"fine\"}},\n{item}]");
        assert_eq!(
            refused(input.as_bytes()),
            (Place::Item(2), expected),
            "{item}"
        );
    }
    let twice = r#"[{"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y"}]"#;
    let taken = Problem::DuplicateName {
        name: "a".into(),
        first: Place::Item(1),
    };
    assert_eq!(refused(twice.as_bytes()), (Place::Item(2), taken));
    // A file that begins like an array and is none.
    let open = "[{\"prompt\": \"x\"},\n{\"prompt\": \"y\"}\n";
    assert_eq!(
        refused(open.as_bytes()),
        (Place::Line(3), Problem::ArrayOpen)
    );
    for (array, line) in [
        ("[{\"prompt\": \"x\"}]\n{}", 1),
        ("[\n{\"prompt\": \"x\"}\n}", 3),
        ("[\n]]", 2),
    ] {
        let ends = (Place::Line(line), Problem::ArrayEnds);
        assert_eq!(refused(array.as_bytes()), ends, "{array}");
    }
    for broken in [
        "[{\"prompt\": \"x\"},]",
        "[{\"prompt\": \"x\"}, {\"a\" 1}]",
        "[{\"prompt\": \"x\"} ,, 1]",
    ] {
        let (place, problem) = refused(broken.as_bytes());
        assert_eq!(place, Place::Item(2), "{broken}");
        assert!(matches!(problem, Problem::NotJson(_)), "{problem}");
    }
    assert_eq!(
        refused(b"[\n{\"prompt\": \"\xff\"}]"),
        (Place::Line(2), Problem::NotUtf8)
    );
}

#[test]
fn brackets_and_quotes_inside_a_text_end_nothing() {
    let array = r#"[{"prompt": "a ] \" } , \\"}, {"prompt": "[{"}]"#;
    let prompts = strict(array.as_bytes()).unwrap();
    assert_eq!(prompts[0].turns, [Turn::of_user(r#"a ] " } , \"#)]);
    assert_eq!(prompts[1].turns, [Turn::of_user("[{")]);
}

#[test]
fn limits_hold_in_arrays_too() {
    let item = |n: usize| {
        format!(
            "{{\"prompt\": \"{}\"}}",
            "x".repeat(n - r#"{"prompt": ""}"#.len())
        )
    };
    let array = |items: &[String]| format!("[{}]", items.join(","));
    assert_eq!(
        strict(array(&[item(MAX_ITEM_BYTES)]).as_bytes())
            .unwrap()
            .len(),
        1
    );
    let above = array(&[item(20), item(MAX_ITEM_BYTES + 1)]);
    assert_eq!(
        refused(above.as_bytes()),
        (Place::Item(2), Problem::TooLong)
    );
    let many = array(&vec![item(15); MAX_PROMPTS + 1]);
    let place = Place::Item(MAX_PROMPTS + 1);
    assert_eq!(refused(many.as_bytes()), (place, Problem::TooManyPrompts));
    let mut large = b"[\n".to_vec();
    large.resize(MAX_SOURCE_BYTES + 1, b' ');
    assert_eq!(refused(&large), (Place::Line(2), Problem::SourceTooLong));
    assert!(matches!(
        strict(b"[]"),
        Err(WorkloadError::NoPrompts { .. })
    ));
}

#[test]
fn conversations_become_ids_through_the_template() {
    let texts = strict(SHARE_GPT.as_bytes()).unwrap();
    let render = |turns: &[Turn]| {
        let turns = turns
            .iter()
            .map(|t| format!("<{}>{}", t.role.name(), t.text));
        Ok::<_, std::convert::Infallible>(turns.collect::<String>())
    };
    let encode =
        |text: &String| Ok::<_, std::convert::Infallible>(text.bytes().map(u32::from).collect());
    let prompts: Vec<Prompt> = tokenize(texts, 5, render, encode).unwrap();
    let wanted: Vec<u32> = "<system>Be short.<user>What is a KV cache?"
        .bytes()
        .map(u32::from)
        .collect();
    assert_eq!(prompts[0].tokens, wanted);
    assert_eq!([prompts[0].output_tokens, prompts[1].output_tokens], [5, 9]);
}

/// Pieces that real files are made of, so that random sequences of them come close to being ones.
fn fragment() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\n",
        "\"",
        " ",
        "\\",
        "\u{feff}",
        "null",
        "1e9",
        "-1",
        "\"prompt\"",
        "\"messages\"",
        "\"conversations\"",
        "\"role\"",
        "\"from\"",
        "\"content\"",
        "\"value\"",
        "\"user\"",
        "\"human\"",
        "\"max_tokens\"",
        "\"name\"",
        "\"text\"",
        "\"type\"",
        "{\"prompt\": \"x\"}",
        "{\"role\": \"user\", \"content\": \"x\"}",
    ])
}

fn is_read_or_refused(input: &[u8]) -> Result<(), TestCaseError> {
    for plain in [PlainText::Accepted, PlainText::Refused] {
        match read_prompts(input, "f", plain) {
            Ok(prompts) => {
                prop_assert!(!prompts.is_empty());
                for prompt in prompts {
                    let last = prompt.turns.last().unwrap();
                    prop_assert_eq!(last.role, Role::User);
                    prop_assert!(!last.text.trim().is_empty() && !prompt.name.is_empty());
                }
            }
            Err(error) => prop_assert!(
                error.to_string().contains("wanted")
                    || error.to_string().contains("UTF-8")
                    || error.to_string().contains("give ")
            ),
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(input in prop::collection::vec(any::<u8>(), 0..200)) {
        is_read_or_refused(&input)?;
    }

    #[test]
    fn any_near_miss_is_read_or_refused(parts in prop::collection::vec(fragment(), 0..40)) {
        is_read_or_refused(parts.concat().as_bytes())?;
    }

    #[test]
    fn a_damaged_file_is_read_or_refused(at in 0..SHARE_GPT.len(), byte: u8, cut in 0..SHARE_GPT.len()) {
        let mut bytes = SHARE_GPT.as_bytes().to_vec();
        bytes[at] = byte;
        is_read_or_refused(&bytes)?;
        is_read_or_refused(&bytes[..cut])?;
    }
}
