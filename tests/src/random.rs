//! Random programs through every stage, against the interpreter. `LODE_FUZZ=100000` runs so many; `LODE_FUZZ_SEED` sets the first seed.
//! What fails is made small before it is told.

use driver::{
    cli::{Reduce, Way},
    commands,
    compare::{self, Case, Verdict},
};
use graph::{Module, passes, random, shrink::shrink, text};

/// How many programs, and the first seed.
fn seeds(usual: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|s| s.parse::<u64>().unwrap_or_else(|e| panic!("{name}: {e}")));
    let first = number("LODE_FUZZ_SEED").unwrap_or(0);
    first..first + number("LODE_FUZZ").unwrap_or(usual)
}

fn case(seed: u64) -> Case {
    let p = random::program(seed, random::Options::default());
    Case { module: p.module, dims: p.dims, seed }
}

/// Comparisons counted: how many were made, and how many were beyond what can be asked.
#[derive(Default)]
struct Tally {
    asked: usize,
    beyond: usize,
    found: Vec<String>,
}

impl Tally {
    /// Counts an answer; a mistake is made small by asking again.
    fn count(&mut self, what: &str, case: &Case, answer: Result<(), Verdict>, ask: &dyn Fn(&Case) -> Result<(), Verdict>) {
        self.asked += 1;
        match answer {
            Ok(()) => {}
            Err(Verdict::Limit(_)) => self.beyond += 1,
            Err(Verdict::Differs(text)) if self.found.len() < 5 => {
                let mut last = text;
                let small = shrink(&case.module, &mut |m: &Module| match ask(&Case { module: m.clone(), ..case.clone() }) {
                    Err(Verdict::Differs(text)) => {
                        last = text;
                        true
                    }
                    Ok(()) | Err(Verdict::Limit(_)) => false,
                });
                eprintln!("seed {} {what}, dims {:?}: {last}\n{}", case.seed, case.dims, text::print(&small));
                self.found.push(format!("seed {} {what}: {last}", case.seed));
            }
            Err(Verdict::Differs(text)) => self.found.push(format!("seed {} {what}: {text}", case.seed)),
        }
    }
    fn ask(&mut self, what: &str, case: &Case, ask: &dyn Fn(&Case) -> Result<(), Verdict>) {
        self.count(what, case, ask(case), ask);
    }
    /// Fails if there were mistakes, or if less than this share could be asked.
    #[track_caller]
    fn settle(&self, share: f64) {
        println!("{} comparisons, {} beyond what can be asked, {} mistakes", self.asked, self.beyond, self.found.len());
        assert!(self.found.is_empty(), "{} mistakes: {}", self.found.len(), self.found.join("; "));
        let answered = (self.asked - self.beyond) as f64;
        assert!(answered >= share * self.asked as f64, "only {answered} of {} were answered", self.asked);
    }
}

#[test]
fn text_and_passes_keep_random_programs() {
    let mut t = Tally::default();
    for seed in seeds(2000) {
        let case = case(seed);
        t.ask("text", &case, &|c| compare::text(&c.module));
        t.ask("rounding", &case, &compare::rounding);
        for pass in passes::ALL {
            t.ask(pass.name, &case, &|c| compare::passes(c, &[pass.name]));
        }
        t.ask("pipeline", &case, &|c| compare::passes(c, passes::PIPELINE));
    }
    t.settle(1.0);
}

#[test]
fn gradients_of_random_programs_are_slopes() {
    let mut t = Tally::default();
    for seed in seeds(2000) {
        let case = case(seed);
        t.ask("gradient", &case, &compare::gradient);
        if seed % 8 == 0
            && let Ok(module) = compare::with_gradient(&case.module)
        {
            let case = Case { module, ..case };
            t.ask("text of the gradient", &case, &|c| compare::text(&c.module));
            t.ask("passes of the gradient", &case, &|c| compare::passes(c, passes::PIPELINE));
        }
    }
    t.settle(0.5);
}

#[test]
fn the_optimiser_keeps_random_programs() {
    let mut t = Tally::default();
    for seed in seeds(2000) {
        t.ask("optimize", &case(seed), &compare::optimized);
    }
    t.settle(1.0);
}

#[test]
fn tile_programs_compute_random_programs() {
    let mut t = Tally::default();
    for seed in seeds(600) {
        let case = case(seed);
        t.ask("tile", &case, &compare::tiles);
        if seed % 16 == 0 {
            t.ask("text of kernels", &case, &|c| compare::tile_text(&c.module));
        }
        if seed % 4 == 0
            && let Ok(module) = compare::with_gradient(&case.module)
        {
            t.ask("tile of the gradient", &Case { module, ..case }, &compare::tiles);
        }
    }
    t.settle(0.8);
}

/// Programs that are compiled at once.
const BATCH: usize = 50;

/// The batches whose numbers are chosen, compiled so. A program's seed says which is its batch, also where it alone is asked for.
fn host(what: &str, options: &codegen::Options, chosen: impl Fn(u64) -> bool) {
    let mut t = Tally::default();
    let seeds: Vec<u64> = seeds(2000).filter(|s| chosen(s / BATCH as u64)).collect();
    for batch in seeds.chunks(BATCH) {
        let mut cases: Vec<Case> = batch.iter().map(|s| case(*s)).collect();
        let gradients: Vec<Case> = cases
            .iter()
            .step_by(5)
            .filter_map(|c| Some(Case { module: compare::with_gradient(&c.module).ok()?, ..c.clone() }))
            .collect();
        cases.extend(gradients);
        for (case, answer) in cases.iter().zip(compare::host(&cases, options)) {
            t.count(what, case, answer, &|c| compare::host(std::slice::from_ref(c), options).remove(0));
        }
    }
    t.settle(0.8);
}

/// Every fourth batch as a library is compiled.
#[test]
fn the_host_computes_random_programs() {
    host("host", &codegen::Options::default(), |batch| batch % 4 == 0);
}

/// All others without LLVM's passes and choice of instructions, which take four fifths of the time.
#[test]
fn the_host_computes_random_programs_as_they_are_emitted() {
    host("host without passes", &codegen::Options { opt_level: 0, ..codegen::Options::default() }, |batch| batch % 4 != 0);
}

/// The exit code of `lode reduce` of a module, and what it wrote.
fn reduce(name: &str, module: &Module, ask: impl FnOnce(&mut Reduce)) -> (u8, Option<Module>) {
    let folder = std::env::temp_dir().join(format!("lode-test-reduce-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for temporary files");
    let (file, out) = (folder.join("in.mlir"), folder.join("out.mlir"));
    std::fs::write(&file, text::print(module)).expect("it is written");
    let mut args = Reduce { file, check: None, passes: None, backend: None, dims: Vec::new(), seed: 0, out: Some(out.clone()) };
    ask(&mut args);
    let code = commands::reduce::run(&args);
    let small = std::fs::read_to_string(out).ok().map(|t| text::parse(&t).expect("what is written reads back"));
    std::fs::remove_dir_all(&folder).expect("the folder is there");
    (code, small)
}

#[test]
fn reduce_leaves_what_the_command_asks_for() {
    let module = (0..).map(|s| case(s).module).find(|m| text::print(m).contains("\"tanh\"")).expect("some program has it");
    let (code, small) = reduce("check", &module, |r| r.check = Some("grep -q tanh".into()));
    let small = small.expect("it is written");
    assert_eq!((code, small.funcs[0].nodes.len()), (0, 2), "{}", text::print(&small));
    let (code, small) = reduce("no-check", &module, |r| r.check = Some("grep -q nothing-like-it".into()));
    assert!(code == 1 && small.is_none(), "what does not show the mistake is refused");
}

#[test]
fn reduce_refuses_what_agrees() {
    let c = case(3);
    let dims: Vec<String> = c.dims.iter().map(|(n, v)| format!("{n}={v}")).collect();
    for way in [Way::Text, Way::Optimize, Way::Grad, Way::Tile, Way::Host] {
        let (code, _) = reduce(&format!("{way:?}"), &c.module, |r| (r.backend, r.dims, r.seed) = (Some(way), dims.clone(), 3));
        assert_eq!(code, 1, "{way:?}");
    }
    assert_eq!(reduce("passes", &c.module, |r| (r.passes, r.dims) = (Some("merge_equal".into()), dims.clone())).0, 1);
    assert_eq!(reduce("unknown", &c.module, |r| r.passes = Some("no_such_pass".into())).0, 2);
}
