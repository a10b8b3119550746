// What the pages share. Each has its WORDS, by language, and elements with these ids.
const $ = (id) => document.getElementById(id);
let language = "zh";
const say = (name, ...values) => {
  const words = WORDS[language][name];
  return values.length ? words(...values) : words;
};

function speak(chosen) {
  language = chosen;
  document.documentElement.lang = chosen === "zh" ? "zh-CN" : "en";
  for (const [key, set] of [
    ["en", (e, v) => { e.textContent = v; }],
    ["enPlaceholder", (e, v) => { e.placeholder = v; }],
    ["enLabel", (e, v) => e.setAttribute("aria-label", v)],
  ]) {
    const attribute = key.replace(/[A-Z]/g, (c) => "-" + c.toLowerCase());
    for (const e of document.querySelectorAll(`[data-${attribute}]`)) {
      const zh = `zh${key.slice(2)}`;
      e.dataset[zh] ??= key === "en" ? e.textContent
        : key === "enLabel" ? e.getAttribute("aria-label") : e.placeholder;
      set(e, e.dataset[chosen + key.slice(2)]);
    }
  }
  $("language").textContent = chosen === "zh" ? "English" : "中文";
  $("language").lang = chosen === "zh" ? "en" : "zh-CN";
  try { localStorage.setItem("language", chosen); } catch { /* not kept, then */ }
}

function complain(message) {
  $("error").textContent = message ?? "";
  $("error").hidden = message == null;
}

// Each request has the key, if there is one.
function ask(path, { headers = {}, ...options } = {}) {
  const key = $("key").value.trim();
  if (key) headers.Authorization = `Bearer ${key}`;
  return fetch(path, { headers, ...options });
}

async function problem(response) {
  if (response.status === 429) return say("busy");
  if (response.status === 401) {
    $("ask_key").hidden = false;
    $("settings").open = true;
    $("key").focus();
    return say("key");
  }
  const body = await response.json().catch(() => null);
  return say(response.status < 500 ? "wrong" : "failed") + (body?.error?.message ?? response.status);
}

function keptLanguage() {
  try { return localStorage.getItem("language") === "en" ? "en" : "zh"; } catch { return "zh"; }
}

$("language").addEventListener("click", () => speak(language === "zh" ? "en" : "zh"));
