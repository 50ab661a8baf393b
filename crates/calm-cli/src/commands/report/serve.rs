//! The page of a report at an address of this machine, anew when something has come of the runs.
//!
//! The page is the one that lies in the folder, with one script that asks whether there is a newer one. Only this
//! machine is answered, and only by its own names: a page of somebody else's that makes a browser ask finds nothing.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use calm_report::Study;
use tiny_http::{Header, Method, Request, Response, Server};

use crate::error::Hinted;

/// Reloads the page when there is a newer one. What it was made from stands behind the question mark.
const RELOAD: &str = r#"const own = document.currentScript.src.split("?")[1];
setInterval(async () => {
  try {
    const now = await (await fetch("/version")).text();
    if (now !== own) location.reload();
  } catch (e) {}
}, 1000);
"#;

/// What is answered.
#[derive(Clone, Default)]
struct Shown {
    version: u64,
    page: String,
    csv: String,
    json: String,
}

/// A report that is shown while it lives.
pub struct Served {
    server: Arc<Server>,
    shown: Arc<Mutex<Shown>>,
    thread: Option<JoinHandle<()>>,
    port: u16,
}

impl Served {
    /// Listens at a port of this machine; 0: one that is free.
    pub fn start(port: u16) -> Result<Self> {
        let server = Server::http(("127.0.0.1", port)).map_err(|e| {
            let what = format!("cannot listen at 127.0.0.1:{port}: {e}");
            Hinted::new(what, "give another port: --serve=8723, or --serve=0 for any that is free")
        })?;
        let port = server.server_addr().to_ip().map_or(port, |address| address.port());
        let (server, shown) = (Arc::new(server), Arc::new(Mutex::new(Shown::default())));
        let (listens, answers) = (server.clone(), shown.clone());
        let thread = std::thread::Builder::new().name("report".into()).spawn(move || {
            for request in listens.incoming_requests() {
                // Not held while a browser reads, which may take its time.
                let now = locked(&answers).clone();
                // A browser that went away is no failure.
                let _ = answer(request, &now, port);
            }
        })?;
        Ok(Self { server, shown, thread: Some(thread), port })
    }

    /// Where it is.
    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Shows a study from now on.
    pub fn show(&self, study: &Study) -> Result<()> {
        let (page, csv, json) =
            (calm_report::html(study)?, calm_report::csv(study), calm_report::json(study)?);
        let mut shown = locked(&self.shown);
        let version = shown.version + u64::from(page != shown.page);
        *shown = Shown { version, page, csv, json };
        Ok(())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.server.unblock();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn locked(shown: &Mutex<Shown>) -> MutexGuard<'_, Shown> {
    shown.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer(request: Request, shown: &Shown, port: u16) -> std::io::Result<()> {
    let named = |header: &Header| header.field.equiv("host").then(|| header.value.as_str().to_owned());
    let host = request.headers().iter().find_map(named).unwrap_or_default();
    let own = [format!("127.0.0.1:{port}"), format!("localhost:{port}")].contains(&host);
    let path = request.url().split('?').next().unwrap_or_default();
    let (status, kind, text): (u16, &str, String) = match path {
        _ if !own => (403, "text/plain", "this report is shown at 127.0.0.1 alone\n".to_owned()),
        _ if *request.method() != Method::Get => (405, "text/plain", String::new()),
        "/" => (200, "text/html", with_script(shown)),
        "/reload.js" => (200, "text/javascript", RELOAD.to_owned()),
        "/version" => (200, "text/plain", shown.version.to_string()),
        "/report.csv" => (200, "text/csv", shown.csv.clone()),
        "/study.json" => (200, "application/json", shown.json.clone()),
        _ => (404, "text/plain", "not found\n".to_owned()),
    };
    let mut response = Response::from_string(text).with_status_code(status);
    let kind = format!("{kind}; charset=utf-8");
    for (name, value) in [
        ("content-type", kind.as_str()),
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        (
            "content-security-policy",
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self'; \
             frame-ancestors 'none'",
        ),
    ] {
        if let Ok(header) = Header::from_bytes(name, value) {
            response.add_header(header);
        }
    }
    request.respond(response)
}

fn with_script(shown: &Shown) -> String {
    let script = format!("<script src=\"/reload.js?{}\"></script></body>", shown.version);
    shown.page.replacen("</body>", &script, 1)
}

/// What is known of the runs in some folders: another number when something has come of them.
pub fn state(folders: &[PathBuf]) -> u64 {
    const SAYS: [&str; 5] = ["run.json", "results.json", "metrics.jsonl", "ablation.yaml", "plan.json"];
    let mut hasher = DefaultHasher::new();
    let mut look = |folder: &Path| {
        for name in SAYS {
            let Ok(data) = std::fs::metadata(folder.join(name)) else { continue };
            (folder, name, data.len(), data.modified().ok()).hash(&mut hasher);
        }
    };
    for folder in folders {
        look(folder);
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut inner: Vec<PathBuf> =
            entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        inner.sort();
        inner.iter().for_each(|folder| look(folder));
    }
    hasher.finish()
}

/// How long to wait before the next look: ten times what the page took, so that runs keep the machine, but no longer than ten
/// seconds, since a first page may have scored its runs.
pub fn pause(since: Instant) -> Duration {
    (10 * since.elapsed()).clamp(Duration::from_secs(1), Duration::from_secs(10))
}
