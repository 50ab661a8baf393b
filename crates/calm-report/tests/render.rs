//! The page in a real browser: wide and as narrow as a phone, light and dark.
//!
//! Ignored by default, because it needs headless Chromium (Debian: `apt-get install chromium`, or any Chromium
//! or Chrome named in `CHROMIUM`). The screenshots stay under `target/tmp` for those who want to look.

mod fixture;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use calm_report::{Study, html};

/// A browser that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(120);

fn chromium() -> PathBuf {
    if let Some(named) = std::env::var_os("CHROMIUM") {
        return named.into();
    }
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .flat_map(|folder| names.map(|name| folder.join(name)))
        .find(|file| file.is_file())
        .unwrap_or_else(|| {
            panic!(
                "no headless Chromium: none of {names:?} is on the PATH and CHROMIUM is not set. This test renders \
                 the page for real; install one (Debian: apt-get install chromium)"
            )
        })
}

/// Runs the browser on a page; what it writes to stdout.
fn browse(page: &Path, arguments: &[String]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| std::fs::File::create(folder.path().join(name)).expect("a file");
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    let mut command = Command::new(chromium());
    command
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--hide-scrollbars", "--force-device-scale-factor=1"])
        .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
        .args(arguments)
        .arg(format!("file://{}", page.display()))
        // Files and not pipes: nobody reads while the browser is waited for.
        .stdout(file("stdout"))
        .stderr(file("stderr"))
        .stdin(Stdio::null());
    let mut child =
        command.spawn().unwrap_or_else(|e| panic!("{} does not start: {e}", chromium().display()));
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("its status") {
            break status;
        }
        if start.elapsed() > PATIENCE {
            child.kill().expect("killed");
            child.wait().expect("its status");
            panic!("Chromium took more than {PATIENCE:?}: {}", read("stderr"));
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(status.success(), "Chromium: {status}: {}", read("stderr"));
    read("stdout")
}

/// Writes the page where the screenshots go.
fn written(name: &str, page: &str) -> PathBuf {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("report-{name}.html"));
    std::fs::write(&file, page).expect("written");
    file
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Scheme {
    // Blink's numbers of them.
    Dark = 0,
    Light = 1,
}

/// Pixels of the upper part of the page, RGB.
fn screenshot(page: &Path, width: u32, scheme: Scheme) -> Vec<[u8; 3]> {
    let file = page.with_extension(format!("{width}-{scheme:?}.png"));
    let _ = std::fs::remove_file(&file);
    browse(
        page,
        &[
            format!("--screenshot={}", file.display()),
            format!("--window-size={width},5000"),
            format!("--blink-settings=preferredColorScheme={}", scheme as u8),
        ],
    );
    let input =
        std::fs::File::open(&file).unwrap_or_else(|e| panic!("no screenshot {}: {e}", file.display()));
    let mut decoder = png::Decoder::new(std::io::BufReader::new(input));
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().expect("a PNG");
    let mut bytes = vec![0; reader.output_buffer_size().expect("its size")];
    let frame = reader.next_frame(&mut bytes).expect("its pixels");
    assert_eq!(frame.width, width);
    let samples = frame.color_type.samples();
    assert!(samples >= 3, "a screenshot in {:?}", frame.color_type);
    bytes[..frame.buffer_size()].chunks_exact(samples).map(|p| [p[0], p[1], p[2]]).collect()
}

fn brightness(pixels: &[[u8; 3]]) -> f64 {
    pixels.iter().flatten().map(|v| f64::from(*v)).sum::<f64>() / (3 * pixels.len()) as f64
}

#[test]
#[ignore = "needs headless Chromium"]
fn the_page_is_drawn_wide_and_narrow_light_and_dark() {
    let page = written("full", &html(&fixture::full()).expect("a page"));
    for width in [1200, 360] {
        let [light, dark] = [Scheme::Light, Scheme::Dark].map(|scheme| {
            let pixels = screenshot(&page, width, scheme);
            let mut colours = std::collections::HashMap::new();
            pixels.iter().for_each(|p| *colours.entry(*p).or_insert(0usize) += 1);
            assert!(colours.len() > 100, "{width} {scheme:?}: {} colours", colours.len());
            let paper = colours.values().max().copied().unwrap_or(0) as f64 / pixels.len() as f64;
            assert!((0.5..0.98).contains(&paper), "{width} {scheme:?}: {paper} is paper");
            // Colours of the first two series (style.css): plots follow the scheme like the text.
            let series = match scheme {
                Scheme::Light => [[0x00, 0x72, 0xb2], [0xc4, 0x4e, 0x00]],
                Scheme::Dark => [[0x5a, 0xb0, 0xee], [0xff, 0x8c, 0x42]],
            };
            for colour in series {
                let drawn = colours.get(&colour).copied().unwrap_or(0);
                assert!(drawn > 100, "{width} {scheme:?}: {drawn} pixels of {colour:?}");
            }
            brightness(&pixels)
        });
        assert!(light > 220.0 && dark < 60.0, "{width}: light {light}, dark {dark}");
    }
}

/// Reports, as the title of the page, its width, and what sticks out: anything that is not inside a box which
/// scrolls by itself, and any text of a plot outside of it.
const MEASURE: &str = r#"<script>
const width = document.documentElement.clientWidth, out = [];
for (const details of document.querySelectorAll('details')) details.open = true;
for (const e of document.body.querySelectorAll('*')) {
  if (e.closest('.scroll') && !e.matches('.scroll') || e.closest('svg') && !e.matches('svg')) continue;
  const r = e.getBoundingClientRect();
  if (r.width && (r.right > width + 0.5 || r.left < -0.5)) out.push(e.tagName + '.' + e.className);
}
for (const e of document.querySelectorAll('svg.plot text')) {
  const b = e.getBBox(), v = e.ownerSVGElement.viewBox.baseVal;
  if (b.x < -8 || b.y < -8 || b.x + b.width > v.width + 8 || b.y + b.height > v.height + 8) out.push(e.textContent);
}
const all = document.documentElement.scrollWidth;
document.title = ['measured', innerWidth, all, out.slice(0, 5).join(' ')].join('|');
</script></body>"#;

fn measured(name: &str, study: &Study, width: u32) -> (u32, u32, String) {
    let page = html(study).expect("a page").replace("</body>", MEASURE);
    // In a frame, because no window of Chromium is narrower than 500 pixels.
    let page = page.replace('&', "&amp;").replace('"', "&quot;");
    let frame = format!(
        r#"<!DOCTYPE html><title></title><iframe srcdoc="{page}" style="border:0;width:{width}px;height:800px"
        onload="document.title = this.contentDocument.title"></iframe>"#
    );
    let page = written(&format!("{name}-{width}"), &frame);
    let dom = browse(&page, &["--dump-dom".into(), "--window-size=1600,900".into()]);
    let title = dom.split_once("<title>").and_then(|(_, rest)| rest.split_once("</title>"));
    let title = title.map(|t| t.0).unwrap_or_default();
    let fields: Vec<&str> = title.split('|').collect();
    let ["measured", inner, all, out] = fields[..] else { panic!("nothing was measured: {title}") };
    (inner.parse().expect("a width"), all.parse().expect("a width"), out.trim().into())
}

#[test]
#[ignore = "needs headless Chromium"]
fn nothing_sticks_out_of_the_page_on_a_phone_or_a_desk() {
    for (name, study) in [
        ("full", fixture::full()),
        ("single", fixture::single_seed()),
        ("baseline", fixture::baseline_only()),
        ("hostile", fixture::hostile()),
        ("empty", Study::default()),
    ] {
        for width in [360, 1200] {
            let (inner, all, out) = measured(name, &study, width);
            assert_eq!(inner, width, "{name}: the window has another width");
            assert!(all <= width && out.is_empty(), "{name}: {all} of {width} pixels wide: {out}");
        }
    }
}
