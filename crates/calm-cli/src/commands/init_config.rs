//! `calm init-config`: a configuration with every setting and its documentation, and the schema that editors read.

use std::path::Path;

use anyhow::Result;
use calm_config::{load, schema};
use calm_run::config::RunConfig;

use super::write_new;
use crate::args::InitConfigArgs;
use crate::error::Hinted;
use crate::shipped;
use crate::ui::{Printer, pasted};

/// Runs the command.
pub fn run(args: &InitConfigArgs, printer: &Printer) -> Result<()> {
    let resolved = load::<RunConfig>(shipped::find(&args.config)?, &args.overrides)?;
    let document = serde_json::to_value(schemars::schema_for!(RunConfig))?;
    let beside = args.out.with_extension("schema.json");
    let beside_name = beside.file_name().unwrap_or_default().to_string_lossy().into_owned();
    refuse_others(&args.out, None)?;
    let schema_text = serde_json::to_string_pretty(&document)? + "\n";
    refuse_others(&beside, Some(&schema_text))?;

    let shown = pasted(&args.out);
    let mut text = format!("# yaml-language-server: $schema={beside_name}\n");
    text += &format!("# All settings of {}; what is left out keeps its default.\n", resolved.name);
    text += &format!("# Check it: calm config {shown}\n# Train it: calm train --config {shown}\n");
    text += "# More about a key: calm config --explain train.lm.schedule\n\n";
    text += &schema::commented(&document, &resolved.tree);
    write_new(&beside, schema_text.as_bytes())?;
    write_new(&args.out, text.as_bytes())?;
    printer.note(format!("wrote {shown}, and for editors {}", pasted(&beside)));
    printer.note(format!("next: `calm train --config {shown}`; with --dry-run it shows the plan"));
    Ok(())
}

/// A file that is there is somebody's work, unless it holds what would be written.
fn refuse_others(path: &Path, same: Option<&str>) -> Result<()> {
    let there = path.symlink_metadata().is_ok();
    if there && !same.is_some_and(|same| std::fs::read_to_string(path).is_ok_and(|text| text == same)) {
        let what = format!("{} is there already", path.display());
        return Err(Hinted::new(what, "name another file with --out, or move this one away").into());
    }
    Ok(())
}
