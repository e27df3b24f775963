//! The pages of `docs/errors`: one for each code of E01 to E03, whose first program gives the code and whose second gives none.

use super::*;
use std::{collections::BTreeSet, fs, path::Path};

/// The text between fences.
fn blocks(page: &str) -> Vec<&str> {
    page.split("```\n").skip(1).step_by(2).collect()
}

fn codes(source: &str) -> BTreeSet<&str> {
    source.split("code(E").skip(1).map(|rest| &rest[..4]).collect()
}

#[test]
fn each_code_has_a_page_with_a_wrong_and_a_right_program() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors");
    let sources = [include_str!("../error.rs"), include_str!("../../../syntax/src/error.rs")];
    let mut wrong = Vec::new();
    for code in sources.into_iter().flat_map(codes) {
        let Ok(page) = fs::read_to_string(folder.join(format!("E{code}.md"))) else {
            wrong.push(format!("E{code} has no page"));
            continue;
        };
        let programs = blocks(&page);
        let [first, second] = programs[..] else { panic!("E{code} has {} programs", programs.len()) };
        let given: Vec<String> = errors(first).into_iter().map(|e| e.split(' ').nth(1).unwrap_or_default().into()).collect();
        if !page.starts_with(&format!("# E{code}: ")) || given != [format!("E{code}")] {
            wrong.push(format!("the wrong program of E{code} gives {:#?}", errors(first)));
        }
        if let Err(e) = lower_text(second) {
            wrong.push(format!("the right program of E{code} gives {e:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_page_of_hir_shows_what_is_printed() {
    let page = include_str!("../../../../docs/ir/hir.md");
    let [source, printed] = blocks(page)[..] else { panic!("a program and its outline") };
    let p = lower_text(&format!("dims B\nconfig {{ d = 8 }}\n{source}")).unwrap_or_else(|e| panic!("{e:#?}"));
    assert_eq!(crate::print(&p), printed);
}

#[test]
fn the_pages_of_syntax_show_what_is_printed() {
    let mut sources = Sources::default();
    for (page, is_tree) in
        [(include_str!("../../../../docs/ir/tokens.md"), false), (include_str!("../../../../docs/ir/ast.md"), true)]
    {
        let [source, printed] = blocks(page)[..] else { panic!("a program and its dump") };
        let file = sources.add(if is_tree { "ast" } else { "tokens" }, source);
        let mut diags = Diags::new();
        let got = if is_tree {
            syntax::print_ast(&syntax::parse(file, source, &mut diags))
        } else {
            syntax::print_tokens(&syntax::lex(file, source, &mut diags))
        };
        assert_eq!(got, printed);
        assert_eq!(diags.len(), 0);
    }
}
