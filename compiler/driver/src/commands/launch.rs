//! `lode launch`: starts a command as several ranks on this machine, ends all when one fails, and starts them again if that is asked for.

use super::common::{FAILED, USAGE};
use crate::cli::Launch;
use std::{
    net::TcpListener,
    process::{Child, Command},
    time::{Duration, Instant},
};

/// Between looks at the processes.
const PERIOD: Duration = Duration::from_millis(20);

/// Runs the ranks; 0 if all end well.
pub fn run(args: &Launch) -> u8 {
    if args.n == 0 || !args.grace.is_finite() || args.grace < 0.0 {
        eprintln!("launch takes -n 1 or more, and --grace in seconds");
        return USAGE;
    }
    for attempt in 0..=args.restarts {
        let code = match once(args, attempt) {
            Ok(code) => code,
            Err(e) => {
                eprintln!("error: {}: {e}", args.command[0]);
                return FAILED;
            }
        };
        if code == 0 {
            return 0;
        }
        if attempt < args.restarts {
            eprintln!("launch: a rank failed with {code}; starting all again, {} of {}", attempt + 1, args.restarts);
        } else {
            return code;
        }
    }
    FAILED
}

/// Starts all ranks and waits for them; the exit code of the first that failed.
fn once(args: &Launch, attempt: usize) -> std::io::Result<u8> {
    // Free now; rank 0 listens there soon.
    let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
    let program = if args.command[0] == "lode" { std::env::current_exe()? } else { args.command[0].clone().into() };
    let mut ranks = Ranks(Vec::new());
    for rank in 0..args.n {
        let mut command = Command::new(&program);
        command.args(&args.command[1..]);
        let numbers = [("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", args.n), ("LODE_RESTART", attempt)];
        command.envs(numbers.map(|(name, n)| (name, n.to_string())));
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string()).env_remove("LODE_RENDEZVOUS");
        ranks.0.push((command.spawn()?, None));
    }
    let mut failed: Option<(u8, Instant)> = None;
    loop {
        for (child, done) in ranks.0.iter_mut().filter(|(_, done)| done.is_none()) {
            let Some(status) = child.try_wait()? else { continue };
            // Killed by a signal: no code.
            let code = status.code().map_or(FAILED, |c| u8::try_from(c).unwrap_or(FAILED));
            *done = Some(code);
            if code != 0 && failed.is_none() {
                failed = Some((code, Instant::now()));
            }
        }
        if ranks.0.iter().all(|(_, done)| done.is_some()) {
            return Ok(failed.map_or(0, |(code, _)| code));
        }
        if failed.is_some_and(|(_, since)| since.elapsed().as_secs_f64() > args.grace) {
            // Dropping them ends them.
            return Ok(failed.map_or(FAILED, |(code, _)| code));
        }
        std::thread::sleep(PERIOD);
    }
}

/// Processes that do not outlive this.
struct Ranks(Vec<(Child, Option<u8>)>);

impl Drop for Ranks {
    fn drop(&mut self) {
        for (child, _) in self.0.iter_mut().filter(|(_, done)| done.is_none()) {
            // Who is gone already needs no end.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
