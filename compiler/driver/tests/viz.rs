//! The page of `lode viz` in a real browser, headless: no errors, nothing asked of a network, boxes to be seen on both sides, wide and
//! narrow, light and dark. `skipped: no chromium` where there is none; `LODE_CHROMIUM` names another.

use std::{fs, path::Path, process::Command};

/// Set before the page's own script: notes what goes wrong.
const BEFORE: &str = "<script>
const wrong = [];
addEventListener('error', e => wrong.push(e.message || 'a resource: ' + e.target.outerHTML), true);
addEventListener('unhandledrejection', e => wrong.push(String(e.reason)));
addEventListener('securitypolicyviolation', e => wrong.push('policy: ' + e.blockedURI));
console.error = console.warn = (...x) => wrong.push(x.join(' '));
</script>";

/// After the page: looks at it, points at a box, shows every function, and leaves what it saw as text.
const AFTER: &str = "<script>{
const seen = side => [...document.querySelectorAll(`.pane[data-side=\"${side}\"]:not([hidden]) g[data-box]`)].filter(g => {
  const r = g.getBoundingClientRect(), p = g.closest('.pane').getBoundingClientRect();
  return r.width > 4 && r.height > 2 && r.right > p.left && r.left < p.right && r.bottom > p.top && r.top < p.bottom;
}).length;
const first = [seen('before'), seen('after')];
const any = document.querySelector('.pane[data-side=\"after\"]:not([hidden]) g[data-origin] rect');
any.dispatchEvent(new PointerEvent('pointermove', { bubbles: true }));
const told = document.getElementById('line').textContent, hot = document.querySelectorAll('g.hot').length;
let empty = 0;
const which = document.getElementById('which');
for (const o of which.options) {
  which.value = o.value;
  which.onchange();
  if (seen('before') + seen('after') === 0 && document.querySelector('.pane:not([hidden]) g')) empty += 1;
}
const sides = [...document.querySelectorAll('section')].map(s => { const r = s.getBoundingClientRect(); return [r.left, r.top, r.width, r.height].map(Math.round).join(','); });
parent.document.body.textContent = JSON.stringify({
  wrong, first, told, hot: hot > 0, empty, functions: which.options.length, sides,
  asked: performance.getEntriesByType('resource').length,
  overflow: document.documentElement.scrollWidth > innerWidth || document.documentElement.scrollHeight > innerHeight,
  dark: matchMedia('(prefers-color-scheme: dark)').matches, background: getComputedStyle(document.body).backgroundColor,
});
}</script>";

fn chromium() -> Option<String> {
    let named = std::env::var("LODE_CHROMIUM").ok();
    let usual = ["chromium", "chromium-browser", "google-chrome"].map(String::from);
    named.into_iter().chain(usual).find(|c| Command::new(c).arg("--version").output().is_ok_and(|o| o.status.success()))
}

#[test]
fn the_page_works_in_a_browser() {
    let Some(chromium) = chromium() else {
        println!("skipped: no chromium");
        return;
    };
    let folder = std::env::temp_dir().join(format!("lode-test-viz-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder for temporary files");
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/strata/model.lode");
    let page = folder.join("page.html");
    let drawn = Command::new(env!("CARGO_BIN_EXE_lode")).arg("viz").arg(&model).arg("-o").arg(&page).output().expect("it starts");
    assert!(drawn.status.success(), "{}", String::from_utf8_lossy(&drawn.stderr));
    let text = fs::read_to_string(&page).expect("it was written");
    // Ours comes first and last; the page's own policy stays. It is shown in a frame, since windows have a least width.
    let probed = text.replacen("<meta http-equiv", &format!("{BEFORE}<meta http-equiv"), 1).replacen(
        "</body>",
        &format!("{AFTER}</body>"),
        1,
    );
    assert!(probed.len() > text.len() + BEFORE.len(), "the page has a head and a body");
    for (width, height, dark) in [(1280, 800, false), (390, 844, true), (1280, 800, true), (390, 844, false)] {
        let srcdoc = probed.replace('&', "&amp;").replace('"', "&quot;");
        let outer = format!(
            "<!doctype html><body style=\"margin:0\"><iframe width={width} height={height} style=\"border:0\" srcdoc=\"{srcdoc}\"></iframe></body>"
        );
        let file = folder.join("outer.html");
        fs::write(&file, outer).expect("it is written");
        let out = Command::new(&chromium)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000", "--dump-dom"])
            .arg(format!("--user-data-dir={}", folder.join("profile").display()))
            .arg(format!("--blink-settings=preferredColorScheme={}", if dark { 0 } else { 1 }))
            .arg(format!("file://{}", file.display()))
            .output()
            .expect("it starts");
        let dom = String::from_utf8_lossy(&out.stdout).replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&");
        let report = dom.find("{\"wrong\"").map(|a| &dom[a..=dom.rfind('}').expect("it ends")]);
        let report = report.unwrap_or_else(|| panic!("no report: {}", String::from_utf8_lossy(&out.stderr)));
        let seen: serde_json::Value = serde_json::from_str(report).unwrap_or_else(|e| panic!("{e}: {report}"));
        assert_eq!(seen["wrong"], serde_json::json!([]), "{seen}");
        assert_eq!((&seen["asked"], &seen["overflow"], &seen["empty"]), (&0.into(), &false.into(), &0.into()), "{seen}");
        assert!(seen["functions"].as_u64() > Some(5), "{seen}");
        for side in [0, 1] {
            assert!(seen["first"][side].as_u64() > Some(5), "few boxes to be seen: {seen}");
        }
        assert!(seen["hot"] == true && seen["told"].as_str().is_some_and(|t| t.contains(".lode:")), "{seen}");
        assert_eq!(seen["dark"], dark, "{seen}");
        assert_eq!(seen["background"], if dark { "rgb(20, 24, 31)" } else { "rgb(251, 251, 252)" }, "{seen}");
        // Beside each other where there is room, below each other on a phone, and each with a share of the page.
        let sides: Vec<Vec<i64>> = [0, 1]
            .map(|i| seen["sides"][i].as_str().unwrap_or_default().split(',').map(|n| n.parse().unwrap_or(0)).collect())
            .into();
        let beside = sides[0][1] == sides[1][1] && sides[1][0] >= sides[0][2];
        let below = sides[0][0] == sides[1][0] && sides[1][1] >= sides[0][3];
        assert!(if width > 700 { beside } else { below }, "{seen}");
        assert!(sides.iter().all(|s| s[2] * s[3] > i64::from(width) * i64::from(height) / 4), "{seen}");
    }
    fs::remove_dir_all(&folder).expect("the folder is there");
}
