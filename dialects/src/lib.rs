//! Our MLIR dialects, as IRDL, and what loads them: with a context that knows them MLIR parses, verifies and prints our texts in this
//! process, as `mlir-opt --irdl-file=` does from outside.

use melior::{
    Context,
    dialect::DialectRegistry,
    ir::{Module, operation::OperationLike},
    utility::{load_irdl_dialects, register_all_dialects},
};
use std::{cell::RefCell, rc::Rc};

/// The dialect `graph`; see `docs/ir/graph.md`.
pub const GRAPH_IRDL: &str = include_str!("../graph/graph.irdl.mlir");

/// The dialect `tile`; see `docs/ir/tile.md`.
pub const TILE_IRDL: &str = include_str!("../tile/tile.irdl.mlir");

/// What MLIR said against a text: a message a line, each with its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MlirError(pub String);

/// A context in which all of MLIR's own dialects are at hand.
pub fn context() -> Context {
    let registry = DialectRegistry::new();
    register_all_dialects(&registry);
    Context::new_with_registry(&registry, false)
}

/// Loads dialects from IRDL texts.
///
/// # Errors
/// If a text is no IRDL, or names a dialect that the context has.
pub fn load(context: &Context, definitions: &[&str]) -> Result<(), MlirError> {
    definitions.iter().try_for_each(|text| {
        let module = parse(context, text)?;
        with_messages(context, || load_irdl_dialects(&module).then_some(()))
    })
}

/// The module of a text, verified.
///
/// # Errors
/// If MLIR cannot read it or a verifier objects.
pub fn parse<'c>(context: &'c Context, text: &str) -> Result<Module<'c>, MlirError> {
    if text.contains('\0') {
        return Err(MlirError("a NUL in the text".into()));
    }
    with_messages(context, || Module::parse(context, text).filter(|m| m.as_operation().verify()))
}

/// Runs `f`, and fails with the diagnostics it caused where it gives nothing.
fn with_messages<T>(context: &Context, f: impl FnOnce() -> Option<T>) -> Result<T, MlirError> {
    let messages = Rc::new(RefCell::new(Vec::new()));
    let sink = Rc::clone(&messages);
    let id = context.attach_diagnostic_handler(move |d| {
        sink.borrow_mut().push(format!("{}: {d}", d.location()));
        true
    });
    let result = f();
    context.detach_diagnostic_handler(id);
    result.ok_or_else(|| MlirError(messages.borrow().join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use melior::ir::operation::OperationPrintingFlags;

    const SAMPLE: &str = include_str!("../graph/sample.mlir");

    fn graph_context() -> Context {
        let context = context();
        load(&context, &[GRAPH_IRDL]).expect("the dialect loads");
        context
    }

    #[test]
    fn the_sample_verifies_and_comes_back_as_the_same_graph() {
        let context = graph_context();
        let module = parse(&context, SAMPLE).unwrap_or_else(|e| panic!("{e}"));
        let flags = OperationPrintingFlags::new().print_generic_operation_form();
        let printed = module.as_operation().to_string_with_flags(flags).expect("it prints");
        assert_eq!(graph::text::parse(&printed), graph::text::parse(SAMPLE));
        assert!(graph::text::parse(&printed).is_ok());
    }

    #[test]
    fn the_sample_of_tile_verifies_and_a_damaged_one_does_not() {
        let context = context();
        load(&context, &[GRAPH_IRDL, TILE_IRDL]).expect("the dialects load");
        let sample = include_str!("../tile/sample.mlir");
        let module = parse(&context, sample).unwrap_or_else(|e| panic!("{e}"));
        let flags = OperationPrintingFlags::new().print_generic_operation_form();
        let printed = module.as_operation().to_string_with_flags(flags).expect("it prints");
        let kernels = tile::text::parse(sample).unwrap_or_else(|e| panic!("{e}"));
        let again = tile::text::parse(&printed).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(tile::text::print(&again), tile::text::print(&kernels));
        for (from, to) in
            [("\"tile.load\"", "\"tile.lode\""), ("fn = \"sum\"", "fn = \"sun\""), ("kind = \"vector\"", "kind = 3")]
        {
            assert!(sample.contains(from), "{from}");
            assert!(parse(&context, &sample.replacen(from, to, 1)).is_err(), "{to}");
        }
    }

    #[test]
    fn malformed_graphs_are_found() {
        let context = graph_context();
        for (from, to, want) in [
            (r#"{fn = "exp"}"#, r#"{fn = "expo"}"#, "'\"expo\"' does not satisfy the constraint"),
            (r#"{fn = "exp"}"#, "", "attribute \"fn\" is expected but not provided"),
            (r#"{spec = "btd,dhk->bthk"}"#, "{spec = 3}", "expected base attribute 'builtin.string' but got 'builtin.integer'"),
            ("!graph.tensor<f64, []>", "!graph.tensor<i17, []>", "'i17' does not satisfy the constraint"),
            ("\"graph.iota\"", "\"graph.jota\"", "unregistered operation 'graph.jota'"),
        ] {
            assert!(SAMPLE.contains(from), "{from}");
            let error = parse(&context, &SAMPLE.replacen(from, to, 1)).expect_err(to).to_string();
            assert!(error.contains(want), "{to}: {error}");
        }
        // One dtype for both operands of a product.
        let line = SAMPLE.lines().find(|l| l.contains("graph.contract")).expect("the sample has a product");
        let (operands, results) = line.rsplit_once(" -> ").expect("a type");
        let wrong = SAMPLE.replace(line, &format!("{operands} -> {}", results.replace("f32", "f16")));
        assert!(parse(&context, &wrong).is_err());
    }

    #[test]
    fn wrong_definitions_are_errors() {
        let context = graph_context();
        assert!(load(&context, &["irdl.dialect @x { irdl.operation @y { irdl.operands(%z) } }"]).is_err());
        assert!(load(&context, &["\0"]).is_err());
        assert_eq!(load(&context, &["irdl.dialect @x { irdl.operation @y {} }"]), Ok(()));
        assert!(parse(&context, "\"x.y\"() : () -> ()").is_ok());
        assert!(parse(&context, "\"x.z\"() : () -> ()").is_err());
    }
}
