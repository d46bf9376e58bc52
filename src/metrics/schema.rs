//! Keeps `schema/metrics-v1.json` what this build writes and reads, and older files readable: a
//! fixture a schema version, which nothing may change.

use std::path::Path;

use serde_json::{Map, Value};

use super::{Lossy, Record, SCHEMA_VERSION};
use crate::report::fixture::{interference, record, usual_case, with_int8};

/// Set to write the schema anew after a change of the record.
const WRITE: &str = "DISAGG_WRITE_SCHEMA";

const COMMITTED: &str = include_str!("../../schema/metrics-v1.json");

/// A record of schema version 1, as the build of that time wrote it.
const FIXTURE: &str = include_str!("../../schema/fixtures/run-v1.json");

fn schema() -> Value {
    serde_json::from_str(COMMITTED).unwrap()
}

/// What of a value the schema does not allow, with the path to it.
fn faults(value: &Value, schema: &Value, root: &Value, path: &str) -> Vec<String> {
    if let Some(name) = schema["$ref"].as_str() {
        let target = root.pointer(name.trim_start_matches('#')).expect(name);
        return faults(value, target, root, path);
    }
    for any in ["anyOf", "oneOf"] {
        if let Some(all) = schema[any].as_array() {
            let found: Vec<Vec<String>> = (all.iter())
                .map(|one| faults(value, one, root, path))
                .collect();
            return match found.iter().any(Vec::is_empty) {
                true => Vec::new(),
                false => found.concat(),
            };
        }
    }
    let is_listed = |all: &[Value]| all.contains(value);
    let constant = schema.get("const").map(|only| only == value);
    let listed = schema["enum"].as_array().map(|all| is_listed(all));
    if let Some(false) = constant.or(listed) {
        return vec![format!("{path}: {value} is none of {schema}")];
    }
    if !has_type(value, &schema["type"]) {
        return vec![format!("{path}: {value} is no {}", schema["type"])];
    }
    match value {
        Value::Object(fields) => of_object(fields, schema, root, path),
        Value::Array(items) => {
            let fixed = schema["prefixItems"].as_array();
            let item_schema = |i: usize| fixed.map_or(&schema["items"], |all| &all[i]);
            let all = items.iter().enumerate();
            all.flat_map(|(i, item)| faults(item, item_schema(i), root, &format!("{path}/{i}")))
                .collect()
        }
        _ => Vec::new(),
    }
}

fn of_object(fields: &Map<String, Value>, schema: &Value, root: &Value, path: &str) -> Vec<String> {
    let required = schema["required"].as_array().into_iter().flatten();
    let missing = required
        .filter_map(Value::as_str)
        .filter(|name| !fields.contains_key(*name));
    let mut found: Vec<String> = missing
        .map(|name| format!("{path}/{name} is missing"))
        .collect();
    for (name, value) in fields {
        let path = format!("{path}/{name}");
        match (
            schema["properties"].get(name),
            schema.get("additionalProperties"),
        ) {
            (Some(known), _) | (None, Some(known)) => {
                found.extend(faults(value, known, root, &path));
            }
            // A schema without properties takes any value.
            (None, None) if schema.get("properties").is_none() => {}
            (None, None) => found.push(format!("{path} is not in the schema")),
        }
    }
    found
}

fn has_type(value: &Value, wanted: &Value) -> bool {
    let is = |name: &str| match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("unknown type {other}"),
    };
    match wanted {
        Value::String(name) => is(name),
        Value::Array(names) => names.iter().filter_map(Value::as_str).any(is),
        // Any.
        _ => true,
    }
}

fn faults_of(record: &Value) -> Vec<String> {
    faults(record, &schema(), &schema(), "")
}

#[test]
fn the_schema_is_the_record() {
    let now = serde_json::to_string_pretty(&schemars::schema_for!(Record)).unwrap() + "\n";
    if std::env::var_os(WRITE).is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema/metrics-v1.json");
        std::fs::write(path, now).unwrap();
        return;
    }
    assert!(
        now == COMMITTED,
        "the record is not what schema/metrics-v1.json says: where keys were only added, write it \
         anew with {WRITE}=1, else raise SCHEMA_VERSION and keep the old schema and its fixture"
    );
}

#[test]
fn older_records_stay_readable() {
    assert_eq!(SCHEMA_VERSION, 1, "add the fixture of the new version");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.json");
    std::fs::write(&path, FIXTURE).unwrap();
    let read = Record::read(&path).unwrap();
    assert_eq!((read.cases.len(), read.cases[0].samples.len()), (1, 2));
    let fixture: Value = serde_json::from_str(FIXTURE).unwrap();
    assert_eq!(faults_of(&fixture), Vec::<String>::new());
}

#[test]
fn what_is_written_is_in_the_schema() {
    let mut record = record(vec![with_int8(usual_case(128))]);
    record.interference = Some(interference());
    let unknown = Lossy {
        kl_mean_nats: None,
        ..record.cases[0].lossy[0]
    };
    record.cases[0].lossy.push(unknown);
    let written = serde_json::to_value(&record).unwrap();
    assert_eq!(faults_of(&written), Vec::<String>::new());
}

#[test]
fn what_is_not_in_the_schema_is_found() {
    let fixture: Value = serde_json::from_str(FIXTURE).unwrap();
    let with = |pointer: &str, value: Value| {
        let mut changed = fixture.clone();
        *changed.pointer_mut(pointer).unwrap() = value;
        faults_of(&changed)
    };
    assert_eq!(
        with("/run/seed", "x".into()),
        [r#"/run/seed: "x" is no "integer""#]
    );
    assert_eq!(with("/run/status", "odd".into()).len(), 4);
    assert!(!with("/cases/0/samples/1/events/0/t_ns", 1.5.into()).is_empty());
    let mut more = fixture.clone();
    more["run"]["surprise"] = 1.into();
    assert_eq!(faults_of(&more), ["/run/surprise is not in the schema"]);
    let mut less = fixture;
    less["model"].as_object_mut().unwrap().remove("name");
    assert_eq!(faults_of(&less), ["/model/name is missing"]);
}
