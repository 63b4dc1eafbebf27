//! Compiles the message definitions under `proto/` into Rust types and one descriptor set.
//!
//! In: the descriptor set of the `xds-api` crate, and what it lacks: `proto/typed/*.proto` (Rust types
//! wanted), `proto/known/*.proto` (only recognised, so that an error can say "known but not supported")
//! and `proto/newer/*.proto` (fields that its messages have gained since it was made). Out, in
//! `OUT_DIR`: `pb.rs`, one module tree of Rust types, and `tables.rs`, the constants that reflection
//! works with. Both are made from the same joined descriptors: what reflection knows of a message with
//! a Rust type, the Rust type has too.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};
use protox::file::{ChainFileResolver, DescriptorSetFileResolver, IncludeFileResolver};

/// The folder of messages that are recognised, but have no Rust type.
const KNOWN: &str = "known/";

/// The folder of additions to messages of `xds-api`.
const NEWER: &str = "newer/";

/// What the packages of those additions start with, so that they do not clash while being compiled.
const NEWER_PACKAGE: &str = "newer.";

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut core = FileDescriptorSet::decode(xds_api::FILE_DESCRIPTOR_SET)?;
    for file in &mut core.file {
        file.source_code_info = None;
    }
    let core_files: BTreeSet<String> = core.file.iter().map(|f| f.name().to_owned()).collect();

    let mut all = compile(&core)?;
    let (newer, own): (Vec<_>, Vec<_>) = std::mem::take(&mut all.file)
        .into_iter()
        .filter(|f| !core_files.contains(f.name()))
        .partition(|f| f.name().starts_with(NEWER));
    all.file = core.file;
    all.file.extend(own);
    let newer: BTreeSet<String> = merge_newer(&mut all, newer).into_iter().collect();
    prune(&mut all);
    fs::write(out.join("tables.rs"), tables(&all, &newer)?)?;

    all.file.retain(|f| !f.name().starts_with(KNOWN));
    let generated = out.join("pb");
    generate(&generated, all)?;
    fs::write(out.join("pb.rs"), module_tree(&generated)?)?;
    Ok(())
}

/// Our files and every file that they import.
fn compile(core: &FileDescriptorSet) -> Result<FileDescriptorSet, Box<dyn Error>> {
    let mut names = Vec::new();
    for folder in ["typed", "known", "newer"] {
        println!("cargo:rerun-if-changed=proto/{folder}");
        for entry in fs::read_dir(Path::new("proto").join(folder))? {
            let file = entry?.file_name();
            names.push(format!("{folder}/{}", file.to_string_lossy()));
        }
    }
    names.sort();
    let mut resolver = ChainFileResolver::new();
    resolver.add(IncludeFileResolver::new(PathBuf::from("proto")));
    resolver.add(DescriptorSetFileResolver::new(core.clone()));
    let mut compiler = protox::Compiler::with_file_resolver(resolver);
    compiler.include_imports(true);
    compiler.open_files(&names)?;
    let mut set = compiler.file_descriptor_set();
    for file in &mut set.file {
        file.source_code_info = None;
    }
    Ok(set)
}

/// Writes one `PACKAGE.rs` for each package.
fn generate(folder: &Path, set: FileDescriptorSet) -> Result<(), Box<dyn Error>> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    let mut config = prost_build::Config::new();
    config
        .out_dir(folder)
        .compile_well_known_types()
        .enable_type_names()
        .type_name_domain(["."], "type.googleapis.com");
    config.compile_fds(set)?;
    Ok(())
}

/// One module of the tree.
#[derive(Default)]
struct Node {
    file: Option<String>,
    children: BTreeMap<String, Node>,
}

impl Node {
    fn at(&mut self, segments: impl IntoIterator<Item = String>) -> &mut Self {
        segments.into_iter().fold(self, |node, segment| node.children.entry(segment).or_default())
    }

    fn write(&self, out: &mut String) {
        if let Some(file) = &self.file {
            let _ = writeln!(out, "include!(concat!(env!(\"OUT_DIR\"), \"/pb/{file}\"));");
        }
        for (name, child) in &self.children {
            let _ = writeln!(out, "pub mod {name} {{");
            child.write(out);
            out.push_str("}\n");
        }
    }
}

fn module_tree(generated: &Path) -> Result<String, Box<dyn Error>> {
    let mut root = Node::default();
    for entry in fs::read_dir(generated)? {
        let file = entry?.file_name().to_string_lossy().into_owned();
        let module = file.trim_end_matches(".rs");
        root.at(module.split('.').map(str::to_owned)).file = Some(file.clone());
    }
    let mut out = String::new();
    root.write(&mut out);
    Ok(out)
}

/// Adds the fields and types of `newer` to the messages they extend; returns the fields added.
fn merge_newer(set: &mut FileDescriptorSet, newer: Vec<FileDescriptorProto>) -> Vec<String> {
    let mut added = Vec::new();
    for mut file in newer {
        let package = file.package().trim_start_matches(NEWER_PACKAGE).to_owned();
        for message in &mut file.message_type {
            strip_newer(message);
        }
        for message in file.message_type {
            let scope = format!("{package}.{}", message.name());
            let target = set.file.iter_mut().filter(|f| f.package() == package);
            let target = target.flat_map(|f| &mut f.message_type).find(|m| m.name() == message.name());
            match target {
                Some(target) => merge_message(target, message, &scope, &mut added),
                // A new message: any file of its package may hold it.
                None => set
                    .file
                    .iter_mut()
                    .filter(|f| f.package() == package)
                    .take(1)
                    .for_each(|f| f.message_type.push(message.clone())),
            }
        }
        for value in file.enum_type {
            set.file
                .iter_mut()
                .filter(|f| f.package() == package)
                .take(1)
                .for_each(|f| f.enum_type.push(value.clone()));
        }
    }
    added
}

fn strip_newer(message: &mut DescriptorProto) {
    for field in &mut message.field {
        let own = field
            .type_name()
            .strip_prefix('.')
            .and_then(|n| n.strip_prefix(NEWER_PACKAGE))
            .map(|n| format!(".{n}"));
        if let Some(own) = own {
            field.type_name = Some(own);
        }
    }
    message.nested_type.iter_mut().for_each(strip_newer);
}

fn merge_message(target: &mut DescriptorProto, newer: DescriptorProto, scope: &str, added: &mut Vec<String>) {
    for mut field in newer.field {
        if let Some(index) = field.oneof_index {
            let Some(oneof) = usize::try_from(index).ok().and_then(|i| newer.oneof_decl.get(i)) else {
                continue;
            };
            let known = target.oneof_decl.iter().position(|o| o.name() == oneof.name());
            let position = known.unwrap_or_else(|| {
                target.oneof_decl.push(oneof.clone());
                target.oneof_decl.len() - 1
            });
            field.oneof_index = i32::try_from(position).ok();
        }
        added.push(format!("{scope} {}", field.name()));
        target.field.push(field);
    }
    for nested in newer.nested_type {
        let scope = format!("{scope}.{}", nested.name());
        match target.nested_type.iter_mut().find(|m| m.name() == nested.name()) {
            Some(target) => merge_message(target, nested, &scope, added),
            None => target.nested_type.push(nested),
        }
    }
    for newer in newer.enum_type {
        match target.enum_type.iter_mut().find(|known| known.name() == newer.name()) {
            Some(known) => merge_enum(known, newer),
            None => target.enum_type.push(newer),
        }
    }
}

/// Adds the values that are new.
fn merge_enum(target: &mut EnumDescriptorProto, newer: EnumDescriptorProto) {
    for value in newer.value {
        if !target.value.iter().any(|known| known.number() == value.number()) {
            target.value.push(value);
        }
    }
}

/// Packages whose messages never stand in a configuration, unless one of another package needs them.
const ASIDE: [&str; 9] = [
    "envoy.admin.",
    "envoy.annotations",
    "envoy.data.",
    "envoy.service.",
    "google.",
    "io.prometheus.",
    "opencensus.",
    "udpa.annotations",
    "xds.annotations.",
];

/// Services and packages kept all the same.
const KEPT: [&str; 9] = [
    "envoy.service.accesslog.v3",
    "envoy.service.auth.v3",
    "envoy.service.ext_proc.v3",
    "envoy.service.discovery.v3",
    "envoy.service.load_stats.v3",
    "envoy.service.metrics.v3",
    "envoy.service.ratelimit.v3",
    "envoy.service.runtime.v3",
    "google.protobuf",
];

/// Drops what reflection does not need. Every message costs memory as long as the process runs.
fn prune(set: &mut FileDescriptorSet) {
    let aside = |package: &str| {
        package == "validate" || (ASIDE.iter().any(|p| package.starts_with(p)) && !KEPT.contains(&package))
    };
    // Top-level type to the types it names.
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut todo = Vec::new();
    for file in &mut set.file {
        if file.name() == "google/protobuf/descriptor.proto" {
            file.message_type.clear();
            file.enum_type.clear();
        }
        let package = file.package().to_owned();
        for message in &file.message_type {
            let name = format!(".{package}.{}", message.name());
            let mut used = BTreeSet::new();
            names_in(message, &mut used);
            uses.insert(name.clone(), used);
            if !aside(&package) {
                todo.push(name);
            }
        }
        for name in file.enum_type.iter().map(|e| e.name().to_owned()) {
            uses.insert(format!(".{package}.{name}"), BTreeSet::new());
        }
    }
    let mut reached = BTreeSet::new();
    while let Some(name) = todo.pop() {
        // A nested type is kept with the message around it.
        let top = name
            .match_indices('.')
            .map(|(at, _)| &name[..at])
            .chain([name.as_str()])
            .find(|n| uses.contains_key(*n));
        if let Some(top) = top {
            if reached.insert(top.to_owned()) {
                todo.extend(uses.get(top).into_iter().flatten().cloned());
            }
        }
    }
    for file in &mut set.file {
        let package = file.package().to_owned();
        file.message_type.retain(|m| reached.contains(&format!(".{package}.{}", m.name())));
        file.enum_type.retain(|e| reached.contains(&format!(".{package}.{}", e.name())));
    }
    set.file.retain(|f| !f.message_type.is_empty() || !f.enum_type.is_empty());
}

fn names_in(message: &DescriptorProto, names: &mut BTreeSet<String>) {
    names.extend(message.field.iter().filter_map(|f| f.type_name.clone()));
    message.nested_type.iter().for_each(|nested| names_in(nested, names));
}

/// The tables of `src/reflect/table.rs` as Rust source.
fn tables(set: &FileDescriptorSet, newer: &BTreeSet<String>) -> Result<String, Box<dyn Error>> {
    let mut messages = BTreeMap::new();
    let mut enums = BTreeMap::new();
    for file in &set.file {
        for message in &file.message_type {
            collect(message, file.package(), &mut messages, &mut enums);
        }
        for descriptor in &file.enum_type {
            enums.insert(format!("{}.{}", file.package(), descriptor.name()), descriptor);
        }
    }
    let message_index: BTreeMap<&str, usize> = messages.keys().map(String::as_str).zip(0..).collect();
    let enum_index: BTreeMap<&str, usize> = enums.keys().map(String::as_str).zip(0..).collect();

    let mut out = String::from("pub(super) static MESSAGES: &[Message] = &[\n");
    for (name, message) in &messages {
        let is_map = message.options.as_ref().is_some_and(prost_types::MessageOptions::map_entry);
        // The oneofs that the compiler makes up for `optional` fields are none.
        let made_up: BTreeSet<i32> =
            message.field.iter().filter(|f| f.proto3_optional()).filter_map(|f| f.oneof_index).collect();
        let real: Vec<(i32, &str)> = (0i32..)
            .zip(&message.oneof_decl)
            .filter(|(index, _)| !made_up.contains(index))
            .map(|(index, oneof)| (index, oneof.name()))
            .collect();
        let oneofs: Vec<&str> = real.iter().map(|(_, name)| *name).collect();
        write!(out, "Message {{ name: {name:?}, map_entry: {is_map}, oneofs: &{oneofs:?}, fields: &[")?;
        let mut fields: Vec<_> = message.field.iter().collect();
        fields.sort_by_key(|field| field.number());
        for field in fields {
            let index = field.oneof_index.filter(|_| !field.proto3_optional());
            let oneof = index.and_then(|index| real.iter().position(|(real, _)| *real == index));
            let target = field.type_name().trim_start_matches('.');
            let kind = match field.r#type() {
                Type::Message => format!("Type::Message({})", find(&message_index, target)?),
                Type::Enum => format!("Type::Enum({})", find(&enum_index, target)?),
                Type::Group => return Err(format!("{name} has a group").into()),
                scalar => format!("Type::{scalar:?}"),
            };
            let shape = if field.label() == Label::Repeated {
                "Repeated"
            } else if field.r#type() == Type::Message || field.proto3_optional() || oneof.is_some() {
                "Present"
            } else {
                "Plain"
            };
            let newer = newer.contains(&format!("{name} {}", field.name()));
            write!(
                out,
                "Field {{ name: {:?}, json_name: {:?}, number: {}, kind: {kind}, shape: Shape::{shape}, \
                 oneof: {oneof:?}, newer: {newer} }},",
                field.name(),
                field.json_name(),
                field.number()
            )?;
        }
        out.push_str("] },\n");
    }
    out.push_str("];\npub(super) static ENUMS: &[Enum] = &[\n");
    for (name, descriptor) in &enums {
        let values: Vec<(&str, i32)> = descriptor.value.iter().map(|v| (v.name(), v.number())).collect();
        writeln!(out, "Enum {{ name: {name:?}, values: &{values:?} }},")?;
    }
    out.push_str("];\n");
    Ok(out)
}

fn find(index: &BTreeMap<&str, usize>, name: &str) -> Result<usize, String> {
    index.get(name).copied().ok_or_else(|| format!("{name} is used but not defined"))
}

fn collect<'a>(
    message: &'a DescriptorProto,
    scope: &str,
    messages: &mut BTreeMap<String, &'a DescriptorProto>,
    enums: &mut BTreeMap<String, &'a prost_types::EnumDescriptorProto>,
) {
    let name = format!("{scope}.{}", message.name());
    for nested in &message.nested_type {
        collect(nested, &name, messages, enums);
    }
    for descriptor in &message.enum_type {
        enums.insert(format!("{name}.{}", descriptor.name()), descriptor);
    }
    messages.insert(name, message);
}
