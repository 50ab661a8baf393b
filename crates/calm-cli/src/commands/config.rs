//! `calm config`: check, print, list, schema.

use anyhow::Result;
use calm_config::load;
use calm_run::config::RunConfig;

use crate::args::ConfigArgs;
use crate::shipped;
use crate::ui::Printer;

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
    if args.schema {
        let schema = schemars::schema_for!(RunConfig);
        return Ok(printer.result(&serde_json::to_string_pretty(&schema)?)?);
    }
    let name = args.config.as_deref().unwrap_or_default();
    let resolved = load::<RunConfig>(shipped::find(name)?, &args.overrides)?;
    Ok(printer.result(resolved.to_yaml().trim_end())?)
}
