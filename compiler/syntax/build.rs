//! Builds the parser from the grammar.

fn main() {
    lalrpop::process_src().expect("the grammar is part of the source and builds");
}
