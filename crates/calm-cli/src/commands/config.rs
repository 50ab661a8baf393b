//! `calm config`: check, print, list, schema, explain a key.

use anyhow::Result;
use calm_config::load;
use calm_config::schema::{Key, explain, flow};
use calm_run::config::RunConfig;

use crate::args::ConfigArgs;
use crate::error::Hinted;
use crate::shipped;
use crate::ui::{Align, Printer, Table, WIDTH, wrapped};

/// Runs the command.
pub fn run(args: &ConfigArgs, printer: &Printer) -> Result<()> {
    if args.list {
        let mut lines = Vec::new();
        for (name, text) in shipped::SHIPPED {
            let about = text.lines().find_map(|l| l.strip_prefix("description: ")).unwrap_or("");
            lines.push(format!("{name:<18} {about}"));
        }
        return Ok(printer.result(&lines.join("\n"))?);
    }
    let schema = schemars::schema_for!(RunConfig);
    if args.schema {
        return Ok(printer.result(&serde_json::to_string_pretty(&schema)?)?);
    }
    if let Some(path) = &args.explain {
        let key = explain(&serde_json::to_value(&schema)?, path).map_err(|unknown| {
            let remedy = match unknown.meant.as_slice() {
                [] => "`calm config --explain ''` lists the keys at the top".to_owned(),
                [one] => format!("did you mean `{one}`?"),
                several => format!("did you mean one of: {}?", several.join(", ")),
            };
            Hinted::new(unknown.to_string(), remedy)
        })?;
        return Ok(printer.result(&explained(&key))?);
    }
    let name = args.config.as_deref().unwrap_or_default();
    let resolved = load::<RunConfig>(shipped::find(name)?, &args.overrides)?;
    Ok(printer.result(resolved.to_yaml().trim_end())?)
}

/// What is said of a key, for a screen.
fn explained(key: &Key) -> String {
    let mut parts = Vec::new();
    if !key.path.is_empty() {
        parts.push(key.path.clone());
    }
    parts.push(wrapped(&key.about, WIDTH).join("\n"));
    let mut facts = Table::new(&["", ""]).align(&[Align::Left, Align::Left]);
    if !key.kind.is_empty() {
        facts.row(["type", &key.kind]);
    }
    if let Some(default) = &key.default {
        facts.row(["default", &flow(default)]);
    } else if key.required && !key.path.is_empty() {
        facts.row(["default", "none: it must be given"]);
    }
    if !facts.is_empty() {
        parts.push(facts.to_string());
    }
    if !key.below.is_empty() {
        let mut table = Table::new(&["key", "what it is"]).align(&[Align::Left, Align::Left]);
        for below in &key.below {
            table.row([&below.name, &below.about]);
        }
        parts.push(table.to_string());
    }
    parts.join("\n\n")
}
