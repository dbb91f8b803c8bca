//! Programs that were built with an earlier version are understood: messages of the Cap'n Proto service as every version sent them are
//! read with the schemas of today, and no method has another number.
//!
//! `tests/golden/wire` has a folder for each version. The files of the version in work are written by a run of this test with
//! `PANGEA_RECORD=1`; those of released versions never change.
#![allow(clippy::unwrap_used, reason = "a test stops at the first thing that is not as it should be")]

use std::fmt::Write;
use std::fs;
use std::path::Path;

use capnp::introspect::TypeVariant;
use capnp::message::{self, ReaderOptions};
use capnp::schema::{Field, StructSchema};
use capnp::{dynamic_list, dynamic_struct, dynamic_value};

const RECORDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/wire");
const GENERATED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/generated");

/// Files of the schemas that programs use.
const SERVICE: [&str; 6] = ["job", "membership", "model", "node", "plan", "tensor"];

/// Structs within structs that are filled: none is nested deeper.
const DEPTH: u32 = 5;

/// One struct of the service's schemas.
struct Struct {
    name: String,
    schema: fn() -> StructSchema,
    init: for<'a> fn(&'a mut message::Builder<message::HeapAllocator>) -> dynamic_value::Builder<'a>,
    text: fn(&[u8]) -> String,
}

macro_rules! structs {
    ($($file:ident: $($($module:ident)::+),+;)+) => {
        [$($(Struct {
            name: [stringify!($file), $(stringify!($module)),+].join("::"),
            schema: || match <pangea_schema::$file::$($module)::+::Owned as capnp::introspect::Introspect>::introspect().which() {
                TypeVariant::Struct(schema) => schema.into(),
                _ => panic!("not a struct"),
            },
            init: |message| message.init_root::<pangea_schema::$file::$($module)::+::Builder<'_>>().into(),
            text: |bytes| {
                let message = capnp::serialize::read_message(bytes, ReaderOptions::new()).unwrap();
                format!("{:?}", message.get_root::<pangea_schema::$file::$($module)::+::Reader<'_>>().unwrap())
            },
        }),+),+]
    };
}

#[rustfmt::skip]
fn structs() -> Vec<Struct> {
    structs! {
        tensor_capnp: tensor_info, tensor::info_params, tensor::info_results, tensor::read_params, tensor::read_results,
            tensor_sink::write_params, tensor_sink::finish_params, tensor_sink::finish_results, byte_sink::write_params;
        job_capnp: matmul_options, job::progress_params, job::progress_results, job::watch_params, job::watch_results,
            job::cancel_params, job::cancel_results, job::report_params, job::report_results, progress_sink::update_params, progress,
            job_report, task_counts, worker_share, verification, rejection, job_status, job_stage,
            failover;
        model_capnp: model::generate_params, model::generate_results, model::status_params, model::status_results,
            token_sink::append_params, generation::summary_params, generation::summary_results, generation::cancel_params,
            generation::cancel_results, model_status, message, generation_request, generation_request::prompt, sampling, token_bias,
            piece, summary, answer_stage;
        node_capnp: node::hello_params, node::hello_results, node::upload_params, node::upload_results, node::matmul_params,
            node::matmul_results, node::peers_params, node::peers_results, node::status_params, node::status_results,
            node::connect_params, node::connect_results, node::probe_link_params, node::probe_link_results, node::counters_params,
            node::counters_results, node::models_params, node::models_results, node::model_params, node::model_results,
            node::topology_params, node::topology_results, node::check_peer_params, node::check_peer_results,
            node::plan_model_params, node::plan_model_results, node::jobs_params, node::jobs_results, node::add_params,
            node::add_results, node::login_params, node::login_results, node::membership_params, node::membership_results,
            node::load_model_params, node::load_model_results, node::drop_model_params, node::drop_model_results, topology,
            topology_node, topology_link, peer_status, node_status, device_status, memory_use, model_state, link_probe, counters,
            node::ways_back_params, node::ways_back_results, way_back;
        plan_capnp: model_plan, chain, stage;
        membership_capnp: membership::list_params, membership::list_results, membership::invite_params, membership::invite_results,
            membership::join_params, membership::join_results, membership::ask_params, membership::ask_results,
            membership::await_acceptance_params, membership::await_acceptance_results, membership::accept_params,
            membership::accept_results, membership::revoke_params, membership::revoke_results, membership::compare_params,
            membership::compare_results, members, member, invitation, joined, asked;
    }.into()
}

/// A number that differs from field to field and is none of the defaults.
fn number(field: Field) -> u8 {
    100 + field.get_index() as u8
}

/// A value of a type without parts, for `field` or an element of it.
fn value_of(field: Field, of: TypeVariant, name: &str) -> Option<dynamic_value::Reader<'_>> {
    use dynamic_value::Reader as Value;
    let number = number(field);
    Some(match of {
        TypeVariant::Void => Value::Void,
        TypeVariant::Bool => Value::Bool(true),
        TypeVariant::Int8 => Value::Int8(-(number as i8)),
        TypeVariant::Int16 => Value::Int16(-i16::from(number)),
        TypeVariant::Int32 => Value::Int32(-i32::from(number)),
        TypeVariant::Int64 => Value::Int64(-i64::from(number)),
        TypeVariant::UInt8 => Value::UInt8(number),
        TypeVariant::UInt16 => Value::UInt16(u16::from(number) << 8),
        TypeVariant::UInt32 => Value::UInt32(u32::from(number) << 24),
        TypeVariant::UInt64 => Value::UInt64(u64::from(number) << 56),
        TypeVariant::Float32 => Value::Float32(f32::from(number) + 0.5),
        TypeVariant::Float64 => Value::Float64(f64::from(number) + 0.25),
        TypeVariant::Text => Value::Text(name.into()),
        TypeVariant::Data => Value::Data(name.as_bytes()),
        // The last one known, whose number is the largest.
        TypeVariant::Enum(schema) => {
            let schema = capnp::schema::EnumSchema::from(schema);
            let last = schema.get_enumerants().unwrap().len() - 1;
            Value::Enum(dynamic_value::Enum::new(last, schema))
        }
        // Capabilities are no part of a message's bytes.
        TypeVariant::Struct(_) | TypeVariant::List(_) | TypeVariant::AnyPointer | TypeVariant::Capability => {
            return None;
        }
    })
}

/// Sets a field, and the fields of what is in it.
fn set(to: &mut dynamic_struct::Builder<'_>, field: Field, depth: u32) {
    let name = field.get_proto().get_name().unwrap().to_str().unwrap();
    let of = field.get_type().which();
    if let Some(value) = value_of(field, of, name) {
        return to.set(field, value).unwrap();
    }
    match of {
        TypeVariant::Struct(_) if depth > 0 => {
            if let dynamic_value::Builder::Struct(inner) = to.reborrow().init(field).unwrap() {
                fill(inner, None, depth - 1);
            }
        }
        TypeVariant::List(element) if depth > 0 => {
            if let dynamic_value::Builder::List(list) = to.reborrow().initn(field, 2).unwrap() {
                set_elements(list, field, element.which(), name, depth - 1);
            }
        }
        _ => {}
    }
}

fn set_elements(mut list: dynamic_list::Builder<'_>, field: Field, of: TypeVariant, name: &str, depth: u32) {
    for index in 0..list.len() {
        match value_of(field, of, name) {
            Some(value) => list.set(index, value).unwrap(),
            None => {
                if let dynamic_value::Builder::Struct(inner) = list.reborrow().get(index).unwrap() {
                    fill(inner, None, depth);
                }
            }
        }
    }
}

/// Sets every field, and of a union the given one or else the last.
fn fill(mut to: dynamic_struct::Builder<'_>, of_union: Option<Field>, depth: u32) {
    for field in to.get_schema().get_non_union_fields().unwrap() {
        set(&mut to, field, depth);
    }
    let union = to.get_schema().get_union_fields().unwrap();
    if let Some(field) = of_union.or_else(|| union.iter().last()) {
        set(&mut to, field, depth);
    }
}

/// One message for a struct without a union, one for each field of a union.
fn messages_of(of: &Struct) -> Vec<Vec<u8>> {
    let union: Vec<_> = (of.schema)().get_union_fields().unwrap().iter().map(Some).collect();
    let fields = if union.is_empty() { vec![None] } else { union };
    let message = |field| {
        let mut message = message::Builder::new_default();
        let dynamic_value::Builder::Struct(root) = (of.init)(&mut message) else { panic!("not a struct") };
        fill(root, field, DEPTH);
        capnp::serialize::write_message_to_words(&message)
    };
    fields.into_iter().map(message).collect()
}

/// The text `file` of every version, with the version. It is written for the version in work where the environment says so.
fn recorded(file: &str, today: &str) -> Vec<(String, String)> {
    let here = Path::new(RECORDED).join(env!("CARGO_PKG_VERSION"));
    if std::env::var_os("PANGEA_RECORD").is_some() {
        fs::create_dir_all(&here).unwrap();
        fs::write(here.join(file), today).unwrap();
    }
    let text = fs::read_to_string(here.join(file)).unwrap_or_default();
    assert!(text == today, "if the change of {file} is meant, record it with PANGEA_RECORD=1. It is now\n{today}");
    let folders = fs::read_dir(RECORDED).unwrap().map(|entry| entry.unwrap());
    let text = |folder: fs::DirEntry| {
        let text = fs::read_to_string(folder.path().join(file)).ok()?;
        Some((folder.file_name().into_string().unwrap(), text))
    };
    folders.filter(|folder| folder.path().is_dir()).filter_map(text).collect()
}

/// Words of a message's text, in which a field that is not set is absent.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split([' ', ',', '(', ')', '[', ']']).filter(|word| !word.is_empty())
}

#[test]
fn every_struct_of_the_service_is_recorded() {
    let of_schemas: usize = SERVICE
        .iter()
        .map(|file| fs::read_to_string(Path::new(GENERATED).join(format!("{file}_capnp.rs"))).unwrap())
        .map(|code| code.matches("capnp::traits::OwnedStruct for Owned").count())
        .sum();
    assert_eq!(structs().len(), of_schemas, "a struct was added or removed: list it in `structs`");
}

#[test]
fn messages_of_every_version_mean_what_they_meant() {
    let structs = structs();
    let mut today = String::new();
    for of in &structs {
        for bytes in messages_of(of) {
            writeln!(today, "{}\n  {}", of.name, (of.text)(&bytes)).unwrap();
            for line in bytes.chunks(32) {
                let word = |word: &[u8]| word.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
                writeln!(today, "    {}", line.chunks(8).map(word).collect::<Vec<_>>().join(" ")).unwrap();
            }
        }
    }
    let check = |version: &str, name: &str, meant: &str, bytes: &[u8]| {
        let of = structs.iter().find(|of| of.name == name).unwrap_or_else(|| panic!("{name} of {version} is gone"));
        let text = (of.text)(bytes);
        // A later version has more fields, and all those of an earlier one in their order.
        let mut now = words(&text);
        for word in words(meant) {
            assert!(now.any(|other| other == word), "{name} of {version}: `{word}` of\n{meant}\nis not in\n{text}");
        }
    };
    for (version, text) in recorded("service.txt", &today) {
        let (mut name, mut meant, mut bytes) = ("", "", Vec::new());
        for line in text.lines().chain(["end"]) {
            if let Some(hex) = line.strip_prefix("    ") {
                let digits: String = hex.split(' ').collect();
                let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
                bytes.extend((0..digits.len()).step_by(2).map(byte));
            } else if let Some(text) = line.strip_prefix("  ") {
                meant = text;
            } else {
                if !bytes.is_empty() {
                    check(&version, name, meant, &bytes);
                }
                (name, meant) = (line, "");
                bytes.clear();
            }
        }
    }
}

#[test]
fn methods_of_every_version_have_the_numbers_that_they_had() {
    let mut today = String::new();
    for file in SERVICE {
        let code = fs::read_to_string(Path::new(GENERATED).join(format!("{file}_capnp.rs"))).unwrap();
        // Each interface is one module of the generated code, its id behind its methods.
        for module in code.split("\npub mod ").skip(1) {
            let interface = module.split(' ').next().unwrap();
            let Some(methods) = module.split("impl  Client {").nth(1) else { continue };
            let id = methods.split("TYPE_ID: u64 = ").nth(1).unwrap().split(';').next().unwrap();
            for method in methods.split("pub fn ").skip(1).filter(|method| method.contains("_call(_private::TYPE_ID, "))
            {
                let (name, rest) = method.split_once("_request(").unwrap();
                let number = rest.split("_call(_private::TYPE_ID, ").nth(1).unwrap().split(',').next().unwrap();
                writeln!(today, "{interface} {id} {name} {number}").unwrap();
            }
        }
    }
    assert!(today.lines().count() > 30, "{today}");
    for (version, text) in recorded("methods.txt", &today) {
        for method in text.lines() {
            assert!(today.lines().any(|now| now == method), "`{method}` of {version} is not what it was");
        }
    }
}
