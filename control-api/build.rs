//! Compiles the message definitions under `proto/` into Rust types and one descriptor set.
//!
//! In: `proto/typed/*.proto` (Rust types wanted), `proto/known/*.proto` (only recognised, so that an
//! error can say "known but not supported"), and the descriptor set of the `xds-api` crate, from which
//! imports are resolved. Out, in `OUT_DIR`: `pb.rs`, one module tree that joins our types with those of
//! `xds-api`, and `descriptors.bin`, everything that reflection needs.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use heck::{ToSnakeCase as _, ToUpperCamelCase as _};
use prost::Message as _;
use prost_types::{DescriptorProto, FileDescriptorSet};
use protox::file::{ChainFileResolver, DescriptorSetFileResolver, IncludeFileResolver};

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut core = FileDescriptorSet::decode(xds_api::FILE_DESCRIPTOR_SET)?;
    for file in &mut core.file {
        file.source_code_info = None;
    }
    let core_files: BTreeSet<String> = core.file.iter().map(|f| f.name().to_owned()).collect();

    let all = compile(&core)?;
    let ours = |name: &str| !core_files.contains(name);

    let mut typed = all.clone();
    typed.file.retain(|f| !f.name().starts_with("known/"));
    let generated = out.join("pb");
    generate(&generated, typed, &core, ours)?;
    fs::write(out.join("pb.rs"), module_tree(&generated, &core)?)?;

    let mut embedded = core;
    embedded.file.extend(all.file.into_iter().filter(|f| ours(f.name())));
    fs::write(out.join("descriptors.bin"), embedded.encode_to_vec())?;
    Ok(())
}

/// Our files and every file that they import.
fn compile(core: &FileDescriptorSet) -> Result<FileDescriptorSet, Box<dyn Error>> {
    let mut names = Vec::new();
    for folder in ["typed", "known"] {
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

/// Writes one `PACKAGE.rs` for each of our packages; types of `xds-api` are referred to, not repeated.
fn generate(
    folder: &Path,
    typed: FileDescriptorSet,
    core: &FileDescriptorSet,
    ours: impl Fn(&str) -> bool,
) -> Result<(), Box<dyn Error>> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    let own_packages: BTreeSet<String> =
        typed.file.iter().filter(|f| ours(f.name())).map(|f| f.package().to_owned()).collect();

    let mut config = prost_build::Config::new();
    config
        .out_dir(folder)
        .compile_well_known_types()
        .enable_type_names()
        .type_name_domain(["."], "type.googleapis.com");
    let mut whole = BTreeSet::new();
    for file in &core.file {
        let package = file.package();
        let rust = format!("::xds_api::pb::{}", rust_segments(package).join("::"));
        if !own_packages.contains(package) {
            if whole.insert(package) {
                // prost escapes keywords itself in the path of a whole package.
                let raw = format!("::xds_api::pb::{}", package.replace('.', "::"));
                config.extern_path(format!(".{package}"), raw);
            }
            continue;
        }
        // Both crates have types in this package: refer to those of `xds-api` one by one.
        for message in &file.message_type {
            refer_to_message(&mut config, message, package, &rust);
        }
        for name in file.enum_type.iter().map(|e| e.name()) {
            config
                .extern_path(format!(".{package}.{name}"), format!("{rust}::{}", name.to_upper_camel_case()));
        }
    }
    config.compile_fds(typed)?;
    Ok(())
}

fn refer_to_message(config: &mut prost_build::Config, message: &DescriptorProto, scope: &str, rust: &str) {
    if message.options.as_ref().is_some_and(|o| o.map_entry()) {
        return;
    }
    let name = message.name();
    config.extern_path(format!(".{scope}.{name}"), format!("{rust}::{}", name.to_upper_camel_case()));
    let (scope, rust) = (format!("{scope}.{name}"), format!("{rust}::{}", name.to_snake_case()));
    for nested in &message.nested_type {
        refer_to_message(config, nested, &scope, &rust);
    }
    for name in message.enum_type.iter().map(|e| e.name()) {
        config.extern_path(format!(".{scope}.{name}"), format!("{rust}::{}", name.to_upper_camel_case()));
    }
}

/// One module of the joined tree.
#[derive(Default)]
struct Node {
    file: Option<String>,
    reexport: Option<String>,
    children: BTreeMap<String, Node>,
}

impl Node {
    fn at(&mut self, segments: impl IntoIterator<Item = String>) -> &mut Self {
        segments.into_iter().fold(self, |node, segment| node.children.entry(segment).or_default())
    }

    fn write(&self, out: &mut String) {
        if let Some(path) = &self.reexport {
            let _ = writeln!(out, "pub use {path}::*;");
        }
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

fn module_tree(generated: &Path, core: &FileDescriptorSet) -> Result<String, Box<dyn Error>> {
    let mut root = Node::default();
    for file in &core.file {
        let segments = rust_segments(file.package());
        let path = format!("::xds_api::pb::{}", segments.join("::"));
        root.at(segments).reexport = Some(path);
    }
    for entry in fs::read_dir(generated)? {
        let file = entry?.file_name().to_string_lossy().into_owned();
        let module = file.trim_end_matches(".rs");
        root.at(module.split('.').map(str::to_owned)).file = Some(file.clone());
    }
    let mut out = String::new();
    root.write(&mut out);
    Ok(out)
}

/// The module path that prost gives a package; `type` is the only keyword that xDS packages use.
fn rust_segments(package: &str) -> Vec<String> {
    package.split('.').map(|s| if s == "type" { "r#type".to_owned() } else { s.to_snake_case() }).collect()
}
