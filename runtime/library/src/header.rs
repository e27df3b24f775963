//! The C header of a library: what entries take and give, and a typed function for each that a caller's tensors alone decide.
//!
//! In: a manifest. Out: text that stands on `lode.h`. The same manifest gives the same bytes.

use crate::{Entry, Manifest, Port};
use base::{DType, Dim};
use std::collections::BTreeSet;

/// The header of a library in the files `<stem>.lodelib` and `lib<stem>.so`.
pub fn print(manifest: &Manifest, stem: &str) -> String {
    let dims = if manifest.dims.is_empty() { String::new() } else { format!("; {} are run-time dims", manifest.dims.join(", ")) };
    let mut out = format!(
        "/* {}, built for {} by `lode build`, which writes this file anew each time. The library is {stem}.{} with lib{stem}.so beside\n \
         * it: lode_open takes the path of the former. The calls are in lode.h.\n *\n * Entries, what they take (>) and give (<){dims}:\n",
        manifest.name,
        manifest.target,
        crate::file::EXTENSION
    );
    for e in manifest.entries.iter().filter(|e| !e.is_variant()) {
        out.push_str(&format!(" *\n *   {}\n", e.name));
        let stored = e.args.iter().filter(|p| p.role.is_stored()).count();
        if stored > 0 {
            out.push_str(&format!(" *     > {stored} tensors of the library\n"));
        }
        for (mark, ports) in [('>', &e.args), ('<', &e.outputs)] {
            for p in ports.iter().filter(|p| !p.role.is_stored()) {
                out.push_str(&format!(" *     {mark} {}\n", described(p)));
            }
        }
        let kept = e.outputs.iter().filter(|p| p.role.is_stored()).count();
        if kept > 0 {
            out.push_str(&format!(" *     < {kept} tensors of the library\n"));
        }
    }
    out.push_str(" *\n * Parameters and states; each * of a name is a leading axis:\n *\n");
    for p in &manifest.params {
        let shape = p.shape.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
        out.push_str(&format!(" *   {} {}[{shape}]\n", p.name, p.dtype));
    }
    let prefix = identifier(stem);
    let guard = format!("LODE_{}_H", prefix.to_uppercase());
    out.push_str(&format!(" */\n#ifndef {guard}\n#define {guard}\n\n#include \"lode.h\"\n"));
    manifest.entries.iter().filter(|e| !e.is_variant()).for_each(|e| out.push_str(&function(&prefix, e)));
    out + "\n#endif\n"
}

/// `tokens i32[B, T]`.
fn described(p: &Port) -> String {
    let shape = p.shape.iter().map(Dim::to_string).collect::<Vec<_>>().join(", ");
    format!("{} {}[{shape}]", p.name, p.dtype)
}

/// The C type of an element; those that C lacks are their bits.
fn c_type(d: DType) -> &'static str {
    match d {
        DType::F64 => "double",
        DType::F32 | DType::TF32 => "float",
        DType::BF16 | DType::F16 => "uint16_t",
        DType::E4M3 | DType::Bool => "uint8_t",
        DType::I64 => "int64_t",
        DType::I32 => "int32_t",
    }
}

/// The name of a dtype in `lode.h`.
fn c_dtype(d: DType) -> String {
    format!("LODE_{}", d.to_string().to_uppercase())
}

/// A typed function for an entry: its run-time dims, its inputs, and where to put what it gives.
fn function(prefix: &str, e: &Entry) -> String {
    let inputs: Vec<&Port> = e.args.iter().filter(|p| !p.role.is_stored()).collect();
    let results: Vec<&Port> = e.outputs.iter().filter(|p| !p.role.is_stored()).collect();
    let mut symbols = BTreeSet::new();
    inputs.iter().flat_map(|p| &p.shape).for_each(|d| d.symbols(&mut symbols));
    let mut taken = BTreeSet::from(["library".to_string(), "status".into(), "inputs".into(), "result".into()]);
    let mut name = |wanted: &str| {
        let mut name = identifier(wanted);
        while !taken.insert(name.clone()) {
            name.push('_');
        }
        name
    };
    let dims: Vec<(Dim, Dim)> = symbols.iter().map(|s| (Dim::sym(s), Dim::sym(&name(s)))).collect();
    let renamed = |d: &Dim| {
        let with = |s: &str| dims.iter().find(|(from, _)| *from == Dim::sym(s)).map(|(_, to)| to.clone());
        d.substitute(&with)
            .to_string()
            .replace("floordiv(", "lode_floor_div(")
            .replace("min(", "lode_min(")
            .replace("max(", "lode_max(")
    };
    let input_names: Vec<String> = inputs.iter().map(|p| name(&p.name)).collect();
    let result_names: Vec<String> = results.iter().map(|p| name(&p.name)).collect();
    let mut args = vec!["lode_library *library".to_string()];
    args.extend(dims.iter().map(|(_, d)| format!("int64_t {d}")));
    args.extend(inputs.iter().zip(&input_names).map(|(p, n)| format!("const {} *{n}", c_type(p.dtype))));
    args.extend(results.iter().zip(&result_names).map(|(p, n)| format!("const {} **{n}", c_type(p.dtype))));
    let of = |ports: &[&Port]| match ports {
        [] => "nothing".into(),
        ports => ports.iter().map(|p| described(p)).collect::<Vec<_>>().join(", "),
    };
    let mut out = format!(
        "\n/* From {} to {}, which the library keeps until its next lode_run. */\nstatic inline int32_t {prefix}_{}({}) {{\n",
        of(&inputs),
        of(&results),
        identifier(&e.name),
        args.join(", ")
    );
    for (i, p) in inputs.iter().enumerate().filter(|(_, p)| !p.shape.is_empty()) {
        let shape = p.shape.iter().map(renamed).collect::<Vec<_>>().join(", ");
        out.push_str(&format!("  const int64_t shape_{i}[] = {{{shape}}};\n"));
    }
    let list = if inputs.is_empty() { "0" } else { "inputs" };
    if !inputs.is_empty() {
        out.push_str("  const lode_tensor inputs[] = {\n");
        for (i, (p, n)) in inputs.iter().zip(&input_names).enumerate() {
            let shape = if p.shape.is_empty() { "0".into() } else { format!("shape_{i}") };
            let line = format!("    {{\"{}\", {}, {}, {shape}, {n}}},\n", p.name, c_dtype(p.dtype), p.shape.len());
            out.push_str(&line);
        }
        out.push_str("  };\n");
    }
    out.push_str(&format!("  int32_t status = lode_run(library, \"{}\", {list}, {});\n", e.name, inputs.len()));
    if !results.is_empty() {
        out.push_str("  lode_tensor result;\n");
    }
    for (p, n) in results.iter().zip(&result_names) {
        out.push_str(&format!(
            "  if (status == 0 && (status = lode_get(library, LODE_RESULT, \"{}\", &result)) == 0)\n    *{n} = (const {} *)result.data;\n",
            p.name,
            c_type(p.dtype)
        ));
    }
    out + "  return status;\n}\n"
}

/// C's and C++'s words that a name of ours could be. # Source: ISO C11 6.4.1, ISO C++17 5.11.
const KEYWORDS: &[&str] = &[
    "and",
    "asm",
    "auto",
    "bool",
    "break",
    "case",
    "catch",
    "char",
    "class",
    "const",
    "continue",
    "default",
    "delete",
    "do",
    "double",
    "else",
    "enum",
    "explicit",
    "export",
    "extern",
    "false",
    "float",
    "for",
    "friend",
    "goto",
    "if",
    "inline",
    "int",
    "long",
    "mutable",
    "namespace",
    "new",
    "not",
    "operator",
    "or",
    "private",
    "protected",
    "public",
    "register",
    "restrict",
    "return",
    "short",
    "signed",
    "sizeof",
    "static",
    "struct",
    "switch",
    "template",
    "this",
    "throw",
    "true",
    "try",
    "typedef",
    "union",
    "unsigned",
    "using",
    "virtual",
    "void",
    "volatile",
    "while",
    "xor",
];

/// The nearest name that C takes.
fn identifier(name: &str) -> String {
    let mut out: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if out.is_empty() || out.starts_with(|c: char| c.is_ascii_digit()) {
        out.insert(0, '_');
    }
    if KEYWORDS.contains(&out.as_str()) {
        out.push('_');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_typed_function() {
        let text = print(&crate::file::tests::sample().manifest, "my-model");
        for line in [
            "#ifndef LODE_MY_MODEL_H",
            " *     > x f32[B, B]",
            "static inline int32_t my_model_forward(lode_library *library, int64_t B, const float *x, const float **y) {",
            "  const int64_t shape_0[] = {B, B};",
            "    {\"x\", LODE_F32, 2, shape_0, x},",
            "    *y = (const float *)result.data;",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn names_are_those_that_c_takes() {
        for (name, want) in [("x", "x"), ("int", "int_"), ("a.b-c", "a_b_c"), ("7b", "_7b"), ("", "_")] {
            assert_eq!(identifier(name), want);
        }
        let mut manifest = crate::file::tests::sample().manifest;
        let e = &mut manifest.entries[0];
        e.args[0].name = "B".into();
        e.args[0].shape[0] = "floordiv(B + 3, 4)".parse().expect("a dim");
        e.outputs[0].name = "library".into();
        let text = print(&manifest, "m");
        assert!(text.contains("int64_t B, const float *B_, const float **library_)"), "{text}");
        assert!(text.contains("shape_0[] = {lode_floor_div(B + 3, 4), B}"), "{text}");
    }
}
