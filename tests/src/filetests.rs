//! File tests: `// emit: stage…` on the first line, then a program; what each stage prints stands beside it.

use driver::pipeline::{self, Options};
use std::{fs, path::Path};

#[test]
fn every_file_prints_what_stands_beside_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("filetests");
    let mut files: Vec<_> = fs::read_dir(&folder).expect("filetests exist").map(|e| e.expect("readable").path()).collect();
    files.retain(|p| p.extension().is_some_and(|x| x == "lode"));
    files.sort();
    assert!(!files.is_empty());
    for path in files {
        let text = fs::read_to_string(&path).expect("readable");
        let name = path.file_stem().expect("a file").to_string_lossy().into_owned();
        let stages =
            text.lines().next().and_then(|l| l.strip_prefix("// emit:")).unwrap_or_else(|| panic!("{name} has no emit line"));
        let options = Options::default();
        let front = pipeline::front(&format!("{name}.lode"), &text, &mut |_| None, &options);
        let told: Vec<String> = front.diagnostics.iter().map(|d| d.error.to_string()).collect();
        let program = front.program.as_ref().unwrap_or_else(|| panic!("{name}: {told:?}"));
        for stage in stages.split_whitespace() {
            let printed = match stage {
                "hir" => hir::print(program),
                "graph" => graph::text::print(&pipeline::middle(program, &options).expect("it optimises").0),
                "tile" => {
                    let (module, _) = pipeline::middle(program, &options).expect("it optimises");
                    tile::text::print(&pipeline::lower(&module, &Options::default()).expect("it lowers").kernels)
                }
                other => panic!("{name}: no stage {other}"),
            };
            if stage == "graph" {
                let module = graph::text::parse(&printed).expect("the text reads back");
                assert_eq!(graph::text::print(&module), printed, "{name}");
            }
            insta::with_settings!({ snapshot_path => &folder, prepend_module_to_snapshot => false, omit_expression => true }, {
                insta::assert_snapshot!(format!("{name}.{stage}"), printed);
            });
        }
    }
}
