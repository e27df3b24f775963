//! What `lode explain` says, one kernel of each kind. Costs are those of the shipped tables: another table gives other numbers here.

use std::{path::Path, process::Command};

/// The standard output of a command in the root folder.
fn say(args: &[&str]) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let out = Command::new(env!("CARGO_BIN_EXE_lode")).current_dir(root).args(args).output().expect("it starts");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("it is text")
}

/// Explains the first kernel of a function whose row in the table has this text.
fn explain(model: &[&str], func: &str, row: &str) -> String {
    let table = say(&[&["explain"], model, &["--all"]].concat());
    let of_func =
        table.split("\n\n").find(|part| part.starts_with(&format!("{func}:"))).unwrap_or_else(|| panic!("no {func} in\n{table}"));
    let line = of_func.lines().find(|l| l.contains(row)).unwrap_or_else(|| panic!("no {row:?} in\n{of_func}"));
    let number = line.split_whitespace().next().expect("its number");
    say(&[&["explain"], model, &["--kernel", number]].concat())
}

const STRATA: &[&str] = &["models/strata/model.lode", "--dims", "B=8,T=256"];
/// One new token against a cache of 4,095.
const DECODE: &[&str] = &["tests/benches/mla_decode.lode", "--dims", "B=1,T=1,S=4095"];

#[test]
fn the_choice_of_blocks() {
    insta::assert_snapshot!(explain(STRATA, "forward", "fused select"));
}

#[test]
fn a_selected_attention() {
    insta::assert_snapshot!(explain(STRATA, "forward", "attend blocks"));
}

#[test]
fn the_products_of_experts() {
    insta::assert_snapshot!(explain(STRATA, "forward", "grouped_contract"));
}

#[test]
fn a_joined_product() {
    insta::assert_snapshot!(explain(STRATA, "forward", "product abc,cd->abd"));
}

#[test]
fn a_plain_map() {
    insta::assert_snapshot!(explain(STRATA, "forward", "std/nsa.lode:88"));
}

#[test]
fn a_latent_attention_that_decodes() {
    insta::assert_snapshot!(explain(DECODE, "forward@T<=128", "attend causal"));
}

#[test]
fn a_table_for_a_gpu() {
    let table = say(&["explain", "models/llama/model.lode", "--target", "sm_90a"]);
    assert!(table.starts_with("costs at B=64,T=64, NVIDIA H200"), "{table}");
    // There every product is a kernel of ours.
    assert!(table.contains(" host_product_") && !table.contains("library product"), "{table}");
}

#[test]
fn a_table_adds_up() {
    // Of an op that is several launches, and of one in a loop.
    let table = say(&["explain", "models/strata/model.lode", "--target", "sm_90a", "--dims", "B=8,T=256", "--all"]);
    let number = |words: &[&str]| {
        let unit = match words[1].trim_end_matches(',') {
            "Mop" => 1e6,
            "Gop" => 1e9,
            "KiB" => 1024.0,
            "MiB" => 1_048_576.0,
            unit => panic!("{unit} in\n{table}"),
        };
        words[0].parse::<f64>().expect("a number") * unit
    };
    for part in table.split("\n\n").filter(|part| part.contains(" steps, ")) {
        let rows: Vec<Vec<&str>> = part.lines().map(|l| l.split_whitespace().filter(|w| *w != "measured").collect()).collect();
        for (what, at_head, at_row) in [("operations", 5, 6), ("bytes", 7, 8)] {
            let times = |row: &[&str]| row[3].trim_end_matches('×').parse::<f64>().expect("a count");
            let sum: f64 = rows[2..].iter().map(|row| times(row) * number(&row[at_row..])).sum();
            let all = number(&rows[0][at_head..]);
            assert!((sum / all - 1.0).abs() < 0.02, "{what} of {}: {all} for {sum}", rows[0][0]);
        }
    }
}
