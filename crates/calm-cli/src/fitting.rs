//! Remedies as the command at hand can follow them.
//!
//! A library says what helps in general: `--resume` after a full disk, another `--run`. Which options there are is known
//! only here.

use std::collections::BTreeSet;
use std::io::ErrorKind;

use clap::CommandFactory;

use crate::args::{Cli, Command, DataCommand, EvalCommand};

/// A command with the options that it takes.
pub struct Fitting {
    name: &'static str,
    options: BTreeSet<String>,
}

impl Fitting {
    /// Of the command that was called.
    pub fn new(command: Option<&Command>) -> Self {
        let path: &[&'static str] = match command {
            None => &[],
            Some(Command::Train(_)) => &["train"],
            Some(Command::Init(_)) => &["init"],
            Some(Command::Data(DataCommand::Prepare(_))) => &["data", "prepare"],
            Some(Command::Data(DataCommand::Info(_))) => &["data", "info"],
            Some(Command::Data(DataCommand::Sample(_))) => &["data", "sample"],
            Some(Command::Data(DataCommand::Check(_))) => &["data", "check"],
            Some(Command::Eval(EvalCommand::Brierlm(_))) => &["eval", "brierlm"],
            Some(Command::Eval(EvalCommand::Autoencoder(_))) => &["eval", "autoencoder"],
            Some(Command::Eval(EvalCommand::Attention(_))) => &["eval", "attention"],
            Some(Command::Eval(EvalCommand::Segments(_))) => &["eval", "segments"],
            Some(Command::Eval(EvalCommand::Compression(_))) => &["eval", "compression"],
            Some(Command::Compress(_)) => &["compress"],
            Some(Command::Decompress(_)) => &["decompress"],
            Some(Command::Ablate(_)) => &["ablate"],
            Some(Command::Watch(_)) => &["watch"],
            Some(Command::Metrics(_)) => &["metrics"],
            Some(Command::Report(_)) => &["report"],
            Some(Command::Bench(_)) => &["bench"],
            Some(Command::Doctor(_)) => &["doctor"],
            Some(Command::Generate(_)) => &["generate"],
            Some(Command::Config(_)) => &["config"],
            Some(Command::InitConfig(_)) => &["init-config"],
            Some(Command::Explain(_)) => &["explain"],
            Some(Command::Man(_)) => &["man"],
            Some(Command::Latents(_)) => &["latents"],
            Some(Command::Import(_)) => &["import"],
            Some(Command::Export(_)) => &["export"],
            Some(Command::Completions { .. }) => &["completions"],
        };
        Self::of(path)
    }

    /// Of a command by its name.
    pub fn of(path: &[&'static str]) -> Self {
        let mut cli = Cli::command();
        cli.build();
        let mut command = &cli;
        for name in path {
            command = command.find_subcommand(name).unwrap_or(command);
        }
        let options =
            command.get_arguments().filter_map(|a| a.get_long()).map(|o| format!("--{o}")).collect();
        Self { name: path.first().copied().unwrap_or_default(), options }
    }

    /// What the user can do about an error.
    pub fn remedy(&self, error: &anyhow::Error) -> Option<String> {
        // A refused cache has a remedy of its own.
        let own = crate::error::remedy(error);
        let full = error.chain().any(|cause| {
            let io = cause.downcast_ref::<std::io::Error>();
            io.is_some_and(|e| matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded))
        });
        if full {
            return Some(self.full_disk().to_owned());
        }
        // What a library says of the system's EAGAIN; a message is all that is left of it.
        if own.is_none() && error.chain().any(|cause| cause.to_string().contains("os error 11")) {
            return Some(
                "the system starts no more threads: lower --threads, or raise its limit (ulimit -u)".into(),
            );
        }
        own.and_then(|remedy| self.fit(&remedy))
    }

    fn full_disk(&self) -> &'static str {
        match self.name {
            "train" => {
                "free some disk space and run the same command with --resume; what was saved before is whole"
            }
            "ablate" => "free some disk space and run the same command again; what is finished is kept",
            _ if self.options.contains("--out") => "free some disk space, or choose another place with --out",
            _ => "free some disk space and run the command again",
        }
    }

    /// A remedy without the parts that name an option which this command does not have; none if nothing is left.
    pub fn fit(&self, remedy: &str) -> Option<String> {
        let of_ablation = (self.name == "ablate").then(|| in_ablation(remedy));
        let remedy = of_ablation.as_deref().unwrap_or(remedy);
        let parts = parts(remedy);
        let kept: Vec<&(&str, &str)> = parts.iter().filter(|(_, part)| self.can(part)).collect();
        if kept.len() == parts.len() {
            return Some(remedy.to_owned());
        }
        let mut out = String::new();
        for (n, (separator, part)) in kept.iter().enumerate() {
            out.push_str(if n == 0 { "" } else { separator });
            out.push_str(part);
        }
        (!out.is_empty()).then_some(out)
    }

    /// Whether a part of a remedy names only options of this command, or another command that has them.
    fn can(&self, part: &str) -> bool {
        let marks = |c: char| c.is_whitespace() || "`'\"(),;:=".contains(c);
        let mut words = part.split(marks).map(|w| w.trim_end_matches(['.', '?']));
        let other = part.contains("calm ") || part.contains("cargo ") || part.contains("git ");
        other || words.all(|w| !w.starts_with("--") || w.len() < 3 || self.options.contains(w))
    }
}

/// A remedy with the settings of a run where an ablation has them: its own `--set` knows the keys of its file alone.
fn in_ablation(remedy: &str) -> String {
    let mut out = String::new();
    let mut rest = remedy;
    while let Some((before, mut after)) = rest.split_once("--set ") {
        let mut settings = Vec::new();
        loop {
            let end = after.find([' ', ',', ';', ')', '\n']).unwrap_or(after.len());
            let (setting, behind) = after.split_at(end);
            settings.push(setting.replacen('=', ": ", 1));
            match behind.strip_prefix(" --set ") {
                Some(next) => after = next,
                None => {
                    after = behind;
                    break;
                }
            }
        }
        out.push_str(before);
        out.push_str(&format!("`set: {{ {} }}`", settings.join(", ")));
        rest = after;
    }
    out + rest
}

/// The parts of a remedy, each with what stands between it and the one before. What stands in parentheses or
/// backticks is not divided.
fn parts(remedy: &str) -> Vec<(&str, &str)> {
    const SEPARATORS: [&str; 3] = ["; ", ", or ", ", "];
    let mut parts = Vec::new();
    let (mut from, mut before, mut depth, mut quoted, mut at) = (0, "", 0usize, false, 0);
    while at < remedy.len() {
        let rest = &remedy[at..];
        match rest.as_bytes()[0] {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            b'`' => quoted = !quoted,
            _ => {}
        }
        let separator = SEPARATORS.iter().find(|s| depth == 0 && !quoted && rest.starts_with(**s));
        if let Some(separator) = separator {
            parts.push((before, &remedy[from..at]));
            before = separator;
            at += separator.len();
            from = at;
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    parts.push((before, &remedy[from..]));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_keeps_what_the_command_can_do() {
        let report = Fitting::of(&["report"]);
        let both = "name the folder of a run with --run (runs/NAME, or another), or train one first";
        assert_eq!(report.fit(both).as_deref(), Some("train one first"));
        assert_eq!(Fitting::of(&["generate"]).fit(both).as_deref(), Some(both));
        assert_eq!(report.fit("lower --temperature"), None);
        assert_eq!(report.fit("use `calm train --resume`").as_deref(), Some("use `calm train --resume`"));
        let eval = Fitting::of(&["eval", "brierlm"]);
        assert_eq!(
            eval.fit("give --context 8 or more; --quiet").as_deref(),
            Some("give --context 8 or more; --quiet")
        );
        assert_eq!(
            eval.fit("check the permissions, or choose another folder with --out").as_deref(),
            Some("check the permissions")
        );
    }

    #[test]
    fn settings_of_runs_stand_in_the_set_of_an_ablation() {
        let ablate = Fitting::of(&["ablate"]);
        let remedy = "--set train.lm.accumulation=2 --set precision=bf16 (20 GB); --set seed=2, or less";
        let expected =
            "`set: { train.lm.accumulation: 2, precision: bf16 }` (20 GB); `set: { seed: 2 }`, or less";
        assert_eq!(ablate.fit(remedy).as_deref(), Some(expected));
        assert_eq!(Fitting::of(&["train"]).fit(remedy).as_deref(), Some(remedy));
    }

    #[test]
    fn a_full_disk_has_the_remedy_of_its_command() {
        let full = || {
            let e = std::io::Error::from(ErrorKind::StorageFull);
            anyhow::Error::from(calm_run::Error::io("write", "x".as_ref(), e))
        };
        for (command, words) in [
            ("train", "--resume"),
            ("ablate", "the same command again"),
            ("export", "--out"),
            ("report", "--out"),
            ("latents", "--out"),
            ("bench", "run the command again"),
        ] {
            let fitting = Fitting::of(&[command]);
            let remedy = fitting.remedy(&full()).unwrap();
            assert!(remedy.contains(words), "{command}: {remedy}");
            assert_eq!(fitting.fit(&remedy).as_ref(), Some(&remedy));
        }
    }
}
