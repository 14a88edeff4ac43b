package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// browser is a Chromium without a window, driven through ChromeDriver's
// WebDriver protocol (https://www.w3.org/TR/webdriver2/).
type browser struct {
	t       *testing.T
	session string // URL
}

// newBrowser starts a browser, which ends with the test.
func newBrowser(t *testing.T) *browser {
	t.Helper()
	driver, err := exec.LookPath("chromedriver")
	if err != nil {
		t.Skip("the page is not tested: install Debian's chromium and chromium-driver")
	}
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("the page is not tested: install Debian's chromium")
	}
	// ChromeDriver cannot say which port it chose, so it is told one that was free.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	cmd := exec.Command(driver, "--port="+port)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b := &browser{t: t, session: "http://127.0.0.1:" + port + "/session"}
	profile, err := os.MkdirTemp("", "belfry-browser-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.send("DELETE", "", nil, nil); err != nil {
			t.Log(err)
		}
		cmd.Process.Kill()
		cmd.Wait() // it was killed
		// Processes of the browser may go on to write for a moment.
		waitFor(t, "end of the browser's files", func() string { return fmt.Sprint(err) }, func() bool { err = os.RemoveAll(profile); return err == nil })
	})
	args := []string{"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--window-size=1300,900", "--host-resolver-rules=MAP *.test 127.0.0.1", "--user-data-dir=" + profile}
	wish := map[string]any{"capabilities": map[string]any{"alwaysMatch": map[string]any{
		"goog:loggingPrefs":  map[string]string{"browser": "ALL"},
		"goog:chromeOptions": map[string]any{"binary": chromium, "args": args},
	}}}
	var made struct {
		SessionID string `json:"sessionId"`
	}
	waitFor(t, "browser", func() string { return fmt.Sprint(err) }, func() bool {
		err = b.send("POST", "", wish, &made)
		return err == nil
	})
	b.session += "/" + made.SessionID
	return b
}

// send does a command and reads its value.
func (b *browser) send(method, path string, in, out any) error {
	body := []byte("{}")
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	req, err := http.NewRequest(method, b.session+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	res, err := (&http.Client{Timeout: time.Minute}).Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	var answer struct{ Value json.RawMessage }
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s", method, path, answer.Value)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(answer.Value, out)
}

func (b *browser) must(method, path string, in, out any) {
	b.t.Helper()
	if err := b.send(method, path, in, out); err != nil {
		b.t.Fatal(err)
	}
}

// run runs a script in the page and returns what it returns, as text.
func (b *browser) run(script string, args ...any) (text string) {
	b.t.Helper()
	if args == nil {
		args = []any{}
	}
	b.must("POST", "/execute/sync", map[string]any{"script": "return String((() => {" + script + "})())", "args": args}, &text)
	return text
}

func (b *browser) open(url string) {
	b.t.Helper()
	b.must("POST", "/url", map[string]string{"url": url}, nil)
}

// find waits for the one element that is shown and has the text, or just for
// one that the selector finds, and returns its id.
func (b *browser) find(selector, text string) string {
	b.t.Helper()
	var id map[string]string
	waitFor(b.t, selector+" with "+text, b.page, func() bool {
		id = nil
		script := `return [...document.querySelectorAll(arguments[0])].find((e) => e.checkVisibility() && e.textContent.includes(arguments[1])) ?? null`
		err := b.send("POST", "/execute/sync", map[string]any{"script": script, "args": []any{selector, text}}, &id)
		return err == nil && id != nil
	})
	for _, v := range id {
		return v
	}
	return ""
}

func (b *browser) click(selector, text string) {
	b.t.Helper()
	// What is found may be replaced before it is clicked.
	waitFor(b.t, "click on "+selector, b.page, func() bool {
		return b.send("POST", "/element/"+b.find(selector, text)+"/click", nil, nil) == nil
	})
}

// write types into a field in place of what it held.
func (b *browser) write(selector, text string) {
	b.t.Helper()
	id := b.find(selector, "")
	b.must("POST", "/element/"+id+"/clear", nil, nil)
	b.must("POST", "/element/"+id+"/value", map[string]string{"text": text}, nil)
}

func (b *browser) page() string {
	return b.run("return location.hash + '\\n' + document.body.innerText")
}

// gone waits until nothing has the text.
func (b *browser) gone(selector, text string) {
	b.t.Helper()
	waitFor(b.t, "end of "+text, b.page, func() bool {
		return b.run("return [...document.querySelectorAll('"+selector+"')].some((e) => e.textContent.includes(arguments[0]))", text) == "false"
	})
}

// screenshots writes what is shown, wide, narrow and dark, where somebody asks
// for it with BELFRY_SCREENSHOTS=directory.
func (b *browser) screenshots(name string) {
	b.t.Helper()
	dir := os.Getenv("BELFRY_SCREENSHOTS")
	if dir == "" {
		return
	}
	for _, look := range []struct {
		name, scheme  string
		width, height int
	}{{"wide", "light", 1300, 900}, {"phone", "light", 390, 844}, {"dark", "dark", 1300, 900}} {
		b.devtools("Emulation.setDeviceMetricsOverride", map[string]any{"width": look.width, "height": look.height, "deviceScaleFactor": 1, "mobile": look.width < 600})
		b.devtools("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": look.scheme}}})
		var image string
		b.must("GET", "/screenshot", nil, &image)
		png, err := base64.StdEncoding.DecodeString(image)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name+"-"+look.name+".png"), png, 0o644)
		}
		if err != nil {
			b.t.Fatal(err)
		}
	}
	b.devtools("Emulation.clearDeviceMetricsOverride", map[string]any{})
	b.devtools("Emulation.setEmulatedMedia", map[string]any{})
}

func (b *browser) devtools(command string, params map[string]any) {
	b.t.Helper()
	b.must("POST", "/goog/cdp/execute", map[string]any{"cmd": command, "params": params}, nil)
}

// complaints returns what the browser has logged since, but for answers of the
// server that are no success, which belong to a check of what is typed.
func (b *browser) complaints() (list []string) {
	b.t.Helper()
	var entries []struct{ Source, Level, Message string }
	b.must("POST", "/se/log", map[string]string{"type": "browser"}, &entries)
	for _, e := range entries {
		if e.Source != "network" && e.Level != "INFO" && e.Level != "DEBUG" {
			list = append(list, e.Message)
		}
	}
	return list
}

// pressed are the codes of keys, as WebDriver has them.
const (
	keyTab   = "\ue004"
	keyEnter = "\ue007"
)

// focused returns the id of the element that has the focus.
func (b *browser) focused() string {
	b.t.Helper()
	var id map[string]string
	b.must("GET", "/element/active", nil, &id)
	for _, v := range id {
		return v
	}
	return ""
}

// press presses a key where the focus is.
func (b *browser) press(key string) {
	b.t.Helper()
	// What has the focus may be replaced before the key is pressed.
	waitFor(b.t, "a key", b.page, func() bool {
		return b.send("POST", "/element/"+b.focused()+"/value", map[string]string{"text": key}, nil) == nil
	})
}

// reach goes from one thing to the next with the keyboard until it is at one
// whose name is like that, as path.Match has it, and presses Enter.
func (b *browser) reach(name string) {
	b.t.Helper()
	for range 100 {
		var at string
		if err := b.send("GET", "/element/"+b.focused()+"/computedlabel", nil, &at); err == nil {
			if ok, _ := path.Match(name, at); ok { // the patterns are ours
				b.press(keyEnter)
				return
			}
		}
		b.press(keyTab)
	}
	b.t.Fatalf("the keyboard does not lead to %q\n%s", name, b.page())
}

// point moves the pointer onto an element, and there presses and releases its
// button so many times in a row.
func (b *browser) point(selector, text string, clicks int) {
	b.t.Helper()
	const elementKey = "element-6066-11e4-a52e-4f735466cecf" // of WebDriver
	actions := []map[string]any{{"type": "pointerMove", "duration": 0, "x": 0, "y": 0, "origin": map[string]string{elementKey: b.find(selector, text)}}}
	for range clicks {
		actions = append(actions, map[string]any{"type": "pointerDown", "button": 0}, map[string]any{"type": "pointerUp", "button": 0})
	}
	b.must("POST", "/actions", map[string]any{"actions": []map[string]any{{"type": "pointer", "id": "mouse", "actions": actions}}}, nil)
}

// hide makes the page believe that nobody sees it, or that somebody does again.
func (b *browser) hide(hidden bool) {
	b.t.Helper()
	b.run("Object.defineProperty(document, 'hidden', { value: arguments[0], configurable: true }); document.dispatchEvent(new Event('visibilitychange'))", hidden)
}

// holds waits until a field has a value.
func (b *browser) holds(selector, value string) {
	b.t.Helper()
	waitFor(b.t, selector+" with "+value, b.page, func() bool {
		return b.run("return document.querySelector(arguments[0])?.value", selector) == value
	})
}

// check holds of whatever is shown that the browser has nothing to complain of,
// that no text has become markup, and that a screen reader finds a name for all
// that can be reached.
func (b *browser) check(what string) {
	b.t.Helper()
	if b.run("return document.images.length + document.title") != "0"+b.run("return document.title") || b.run("return window.hacked") != "undefined" {
		b.t.Errorf("%s: a text became markup", what)
	}
	var tree struct {
		Nodes []struct {
			Ignored    bool
			Role, Name struct{ Value any }
			Properties []struct {
				Name  string
				Value struct{ Value any }
			}
		}
	}
	b.must("POST", "/goog/cdp/execute", map[string]any{"cmd": "Accessibility.getFullAXTree", "params": map[string]any{}}, &tree)
	for _, n := range tree.Nodes {
		focusable := false
		for _, p := range n.Properties {
			focusable = focusable || p.Name == "focusable" && p.Value.Value == true
		}
		if focusable && !n.Ignored && (n.Name.Value == nil || n.Name.Value == "") && n.Role.Value != "main" {
			b.t.Errorf("%s: a %v has no name", what, n.Role.Value)
		}
	}
	if len(tree.Nodes) == 0 {
		b.t.Errorf("%s: nothing is there for a screen reader", what)
	}
	for _, c := range b.complaints() {
		b.t.Errorf("%s: the browser says: %s", what, c)
	}
	accessible, err := os.ReadFile("testdata/accessible.js")
	if err != nil {
		b.t.Fatal(err)
	}
	for _, scheme := range []string{"light", "dark"} {
		b.devtools("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}})
		if faults := b.run(string(accessible)); faults != "" {
			b.t.Errorf("%s, %s:\n%s", what, scheme, faults)
		}
	}
	b.devtools("Emulation.setEmulatedMedia", map[string]any{})
}

// look makes the window as large as a screen until the returned function is called.
func (b *browser) look(width, height int) func() {
	b.t.Helper()
	b.devtools("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600})
	return func() { b.devtools("Emulation.clearDeviceMetricsOverride", map[string]any{}) }
}

// markup is what must stay text wherever it stands.
const markup = `<img src=x onerror="window.hacked=1">`

// TestPage holds that the page does what is wanted of it, in a real browser.
func TestPage(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a browser")
	}
	b := newBrowser(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *browser)
	}{
		{"FirstVisit", testFirstVisit}, {"Roles", testRoles}, {"Board", testBoard}, {"Traffic", testTraffic}, {"Job", testJob}, {"Markup", testMarkup}, {"Viewer", testViewer}, {"Names", testNames}, {"Live", testLive}, {"OtherOrigin", testOtherOrigin}, {"Rebinding", testRebinding},
		{"Steady", testSteady}, {"Draft", testDraft}, {"TwoTabs", testTwoTabs}, {"Fields", testFields}, {"Addresses", testAddresses}, {"Clock", testClock}, {"Output", testOutput},
	} {
		t.Run(test.name, func(t *testing.T) {
			own := &browser{t: t, session: b.session}
			own.complaints() // of the test before
			test.run(t, own)
		})
	}
}

// testNames: a job may be called as what every object of JavaScript has; and on a
// narrow screen, where rows are blocks, a table is still one to who listens.
func testNames(t *testing.T, b *browser) {
	p := startServer(t, t.TempDir())
	for _, name := range []string{"constructor", "__proto__", "plain"} {
		p.must("POST", "/v1/jobs", shellJob(name, "@manually", "true"), nil)
	}
	for _, name := range []string{"constructor", "__proto__"} {
		b.open(p.url + "/#/jobs")
		b.find("tbody", "plain")
		b.find("tbody", name)
		b.open(p.url + "/#/jobs/" + name)
		b.find("h1", name)
		b.find("dd", name)
	}
	b.open(p.url + "/#/jobs")
	b.find("tbody", "plain")
	b.devtools("Emulation.setDeviceMetricsOverride", map[string]any{"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": true})
	defer b.devtools("Emulation.clearDeviceMetricsOverride", map[string]any{})
	if got := b.run("return getComputedStyle(document.querySelector('tbody tr')).display"); got != "block" {
		t.Errorf("a row of a narrow screen is displayed as %s", got)
	}
	for selector, want := range map[string]string{"table": "table", "tbody": "rowgroup", "tbody tr": "row", "tbody th": "rowheader", "tbody td": "cell"} {
		var element map[string]string
		b.must("POST", "/element", map[string]string{"using": "css selector", "value": selector}, &element)
		for _, id := range element {
			var role string
			b.must("GET", "/element/"+id+"/computedrole", nil, &role)
			if role != want {
				t.Errorf("%s has the role %q on a narrow screen, want %q", selector, role, want)
			}
		}
	}
	if list := b.complaints(); len(list) > 0 {
		t.Errorf("the browser complains: %q", list)
	}
}

// testFirstVisit does what a first visitor does, in the end with the keyboard alone.
func testFirstVisit(t *testing.T, b *browser) {
	p := startServer(t, t.TempDir())
	b.open(p.url + "/dashboard")
	b.find("h1", "Overview")
	b.check("empty overview")
	b.click("a", "Look at the example")
	b.find("#ticks li", "in ")
	b.check("form")
	b.screenshots("form")

	// What is wrong is said at its field.
	b.write("[name=schedule]", "@every never")
	b.find("#e-schedule", "never")
	b.write("[name=schedule]", "@every 1s")
	b.write("[name=command]", "echo begun; sleep 2; echo ended")
	b.click("button", "Create")

	// It runs, and its output comes while it does.
	b.find("h1", "hello")
	b.find("#said", "hello was created")
	b.find(".badge.busy", "running")
	b.check("job")
	b.click("tbody a", "ago")
	b.find("#output", "begun")
	b.find("#output", "ended")
	b.find("#following", "all of it")
	b.find(".badge.good", "succeeded")
	b.check("execution")
	b.screenshots("output")

	b.click("header a", "Overview")
	b.find(".lanes", "hello")
	b.check("overview")

	// What is searched stands in the address.
	p.must("POST", "/v1/jobs", &job{Name: "request", Schedule: "@manually", Executor: executorHTTP, ExecutorConfig: map[string]string{"method": "GET", "url": p.url + "/health"}}, nil)
	p.must("POST", "/v1/jobs", shellJob("long", "@manually", "echo begun; sleep 600"), nil)
	b.click("header a", "Jobs")
	b.find("tbody", "request")
	b.check("jobs")
	b.screenshots("jobs")
	b.must("POST", "/element/"+b.find("[name=executor]", "")+"/value", map[string]string{"text": "http"}, nil)
	b.gone("tbody", "hello")
	b.write("[name=q]", "nothing")
	b.find("main", "No job is like that")
	if hash := b.run("return location.hash"); hash != "#/jobs?executor=http&q=nothing" {
		t.Errorf("the address is %q", hash)
	}
	b.click("a", "Clear")
	b.find("tbody", "hello")
	if q := b.run("return document.querySelector('[name=q]').value"); q != "" {
		t.Errorf("the search still says %q", q)
	}

	// From here on with the keyboard.
	b.open("about:blank")
	b.open(p.url + "/ui/#/jobs")
	b.find("tbody", "hello")
	b.press(keyTab)
	b.reach("Skip to the content")
	if at := b.run("return document.activeElement.id"); at != "main" {
		t.Errorf("the skip link leads to %q", at)
	}
	b.reach("Disable hello")
	b.find(".badge", "disabled")
	b.reach("Run long")
	b.find(".badge.busy", "running")
	b.reach("long")
	b.find("h1", "long")
	if at := b.run("return document.activeElement.textContent"); at != "long" {
		t.Errorf("a new view begins at %q, not at its heading", at)
	}
	b.reach("* ago")
	b.find("#output", "begun")
	b.reach("Kill")
	b.find("#confirm-question", "long")
	b.reach("End it")
	b.find(".badge", "killed")
	b.open(p.url + "/#/jobs/long")
	b.find("h1", "long")
	b.press(keyTab)
	b.reach("More actions for long")
	b.press(keyTab)
	b.reach("Delete long")
	b.find("#confirm-question", "Delete the job long")
	b.reach("Delete")
	b.find("h1", "Jobs")
	b.gone("tbody", "long")
	b.check("jobs")
}

// testJob holds that a job says when it runs next, where, what follows, and what
// became of every time that it fell due.
func testJob(t *testing.T, b *browser) {
	p := startServer(t, t.TempDir())
	seasons := shellJob("seasons", "0 30 12 1 1,7 *", "true")
	seasons.Timezone = "Europe/Berlin"
	p.must("POST", "/v1/jobs", seasons, nil)
	child := shellJob("child", "", "true")
	child.ParentJob = "seasons"
	p.must("POST", "/v1/jobs", child, nil)
	nowhere := shellJob("nowhere", "@manually", "true")
	nowhere.Tags = map[string]string{"role": "none"}
	p.must("POST", "/v1/jobs", nowhere, nil)
	slow := shellJob("slow", "@every 1s", "sleep 600")
	slow.Concurrency = concurrencyForbid
	p.must("POST", "/v1/jobs", slow, nil)

	b.open(p.url + "/#/jobs/seasons")
	b.find("ol li", "12:30")
	b.find("ol li", "UTC+02:00")
	b.find(".warning", "The clocks change before this")
	b.find("dd", "n1")
	b.find(".panel", "Times in Europe/Berlin")
	b.find("dd", "at 12:30")
	b.check("job of a zone")
	b.click("dd a", "child")
	b.find("h1", "child")
	b.click("dd a", "seasons")
	b.find("h1", "seasons")
	b.open(p.url + "/#/jobs/nowhere")
	b.find(".warning", "it cannot run")
	b.open(p.url + "/#/jobs/slow")
	b.find("td", "overlap with")
	b.find("p", "fell due: 1 ran")
	b.check("job with ticks")
	b.screenshots("job")
}

// testMarkup shows texts that look like markup in every view.
func testMarkup(t *testing.T, b *browser) {
	p := startServer(t, t.TempDir())
	j := shellJob("marked", "@manually", "printf '\\033[31mred\\033[0m\\033[2J\\n'; echo '"+markup+"'; exit 3 # "+markup)
	j.DisplayName, j.Owner, j.OwnerEmail, j.Metadata, j.Tags = markup, markup, markup, map[string]string{"team": markup}, map[string]string{}
	p.must("POST", "/v1/jobs", j, nil)
	p.must("POST", "/v1/jobs/marked", nil, nil)
	p.eventually("failure", func() bool { return len(outcomes(p, "marked")) == 1 && outcomes(p, "marked")[0] != "" })
	var list []executionView
	p.must("GET", "/v1/jobs/marked/executions", nil, &list)

	for _, view := range []struct{ path, selector, name string }{
		{"", ".line", "overview"},
		{"jobs", "tbody th", "jobs"},
		{"jobs?metadata=" + url.QueryEscape("team="+markup), "main", "filtered jobs"},
		{"jobs/marked", "h1", "job"},
		{"jobs/marked/executions/" + list[0].ID, "#output", "execution"},
		{"jobs/marked/edit", "#f-json", "form"},
		{"jobs/" + url.PathEscape(markup), "main", "no job"},
	} {
		b.open("about:blank")
		b.open(p.url + "/#/" + view.path)
		switch view.name {
		case "form":
			b.find("#ticks", "by hand")
			b.write("[name=schedule]", markup)
			b.find("#e-schedule", "<img")
		case "no job":
			b.find("h1", "could not be shown")
		case "filtered jobs":
			b.find("h1", "Jobs")
		default:
			b.find(view.selector, markup)
		}
		b.check(view.name)
	}
	b.open(p.url + "/#/jobs/marked/executions/" + list[0].ID)
	b.find("#output .ansi1", "red")
	b.find("#output", "␛[2J")
}

// testRoles holds that a viewer, an operator and an admin see what failed, wait and changed, and are offered what they may
// do: one by one and for what is selected.
func testRoles(t *testing.T, b *browser) {
	p, root, cli, as := guarded(t)
	bad := shellJob("bad", "@manually", "echo first; printf '\\033[1;31mred %s\\033[0m\\n' '"+markup+"'; exit 3")
	bad.Owner = "ops"
	cured := shellJob("cured", "@manually", "test -e here || { touch here; exit 1; }")
	cured.ExecutorConfig["cwd"] = t.TempDir()
	long, waits := shellJob("long", "@manually", "sleep 600"), shellJob("waits", "@manually", "true")
	long.Mutex, waits.Mutex = "disk", "disk"
	for _, j := range []*job{bad, cured, long, waits} {
		as("POST", "/v1/jobs", j)
	}
	for _, run := range []string{"bad", "bad", "cured", "cured", "long", "waits"} {
		wait := "?wait=30s"
		if run == "long" || run == "waits" {
			wait = ""
		}
		as("POST", "/v1/jobs/"+run+"/run"+wait, nil)
	}
	offered := func(selector string) int {
		n, _ := strconv.Atoi(b.run("return [...document.querySelectorAll(arguments[0])].filter((e) => e.checkVisibility()).length", selector))
		return n
	}
	for _, role := range []string{"viewer", "operator", "admin"} {
		b.open("about:blank")
		b.open(p.url + "/#/failures")
		b.write("#token", cli(root, "acl", "token", "create", "--name="+role, "--policy="+role).SecretID)
		b.click("button", "Sign in")

		// Failures are grouped, with how often, whether they go on, and how the last ended.
		failed := len(outcomesAs(as, "bad"))
		b.find(".failures li", fmt.Sprintf("bad failing %d times, since ", failed))
		b.find(".failures li", "cured recovered once")
		b.find(".failures li", "exit code 3")
		b.find(".line", "first\nred "+markup)
		b.check(role + " at failures")
		if got := offered("[data-action=again]"); (got > 0) != (role != "viewer") {
			t.Errorf("a %s is offered to run %d failures again", role, got)
		}
		b.screenshots("failures")

		// All executions, by what stands in the address.
		b.click(".failures a", fmt.Sprint(failed, " times"))
		b.find("h1", "Executions")
		b.find("tbody", "exit code 3")
		if got := b.run("return document.querySelectorAll('tbody tr').length + document.querySelector('[name=job]').value"); got != fmt.Sprint(failed, "bad") {
			t.Errorf("%d executions of bad without success are shown as %s", failed, got)
		}
		b.click("a", "Clear")
		b.find("tbody", "cured")
		b.write("[name=owner]", "ops")
		b.gone("tbody", "cured")
		b.find("tbody", "bad")
		b.check(role + " at executions")
		b.screenshots("executions")
		back := b.look(390, 844)
		b.check(role + " at executions on a phone")
		back()
		if got := offered("[data-pick]"); (got > 0) != (role != "viewer") {
			t.Errorf("a %s is offered to select %d executions", role, got)
		}
		if role != "viewer" {
			runs := len(outcomesAs(as, "bad"))
			b.click("[data-action=again]", "Run again")
			b.find("#said", "bad was started")
			b.click("[aria-label='Select all']", "")
			b.find("#picked", "executions selected")
			b.click(".bulk button", "Run again")
			b.find("#confirm-question", "executions?")
			b.click("dialog button", "Run again")
			b.find("#said", "were run again")
			b.find("#picked", "None selected")
			if got := len(outcomesAs(as, "bad")); got < runs+3 {
				t.Errorf("bad ran %d times before and %d after it was run again three times or more", runs, got)
			}
		}

		// The reason, and what was printed, in its colours.
		b.click("tbody a", "ago")
		b.find("#reason", "exit status 3")
		b.find("#output .ansi1.bold", "red "+markup)
		b.check(role + " at an execution")
		if got := offered("[data-action=again]"); (got > 0) != (role != "viewer") {
			t.Errorf("a %s is offered to run %d executions again", role, got)
		}

		// Jobs are run, disabled and enabled together; to delete one takes two clicks.
		b.click("header a", "Jobs")
		b.find("tbody", "waits")
		b.check(role + " at jobs")
		if role != "viewer" {
			b.click("[aria-label='Select bad']", "")
			b.click("[aria-label='Select cured']", "")
			b.find("#picked", "2 jobs selected")
			for _, verb := range []string{"Disable", "Enable"} {
				b.click(".bulk button", verb)
				b.find("#confirm-question", verb+" 2 jobs?")
				b.click("dialog button", verb)
				b.find("#said", "2 jobs were "+strings.ToLower(verb)+"d")
				b.click("[aria-label='Select bad']", "")
				b.click("[aria-label='Select cured']", "")
			}
		}
		if got := offered("[data-action=delete]"); got != 0 {
			t.Errorf("a %s finds %d ways to delete a job at the first click", role, got)
		}
		if got := offered(".menu"); (got > 0) != (role == "admin") {
			t.Errorf("a %s is offered %d menus", role, got)
		}
		if role == "admin" {
			b.click("[aria-label='More actions for cured']", "")
			b.find("[data-action=delete]", "Delete")
			b.check("open menu")
			b.click("h1", "")
			if offered("[data-action=delete]") != 0 {
				t.Error("a click elsewhere leaves the menu open")
			}
		}

		// What waits, is held and drained.
		b.click("header a", "Overview")
		b.find("#waits li", "waits for mutex disk")
		b.find("#failures", "bad")
		b.check(role + " at the overview")
		if got := offered("[data-action=drain], [data-action=hold]"); (got == 2) != (role != "viewer") {
			t.Errorf("a %s is offered %d ways to drain or hold", role, got)
		}
		if role == "operator" {
			b.click("[data-action=drain]", "")
			b.find(".badge.odd", "drained")
			b.click("[data-action=undrain]", "")
			b.click("[data-action=hold]", "")
			b.write("[data-key=why]", "the disk is being changed")
			b.click("dialog button", "Hold")
			b.find("#paused", "the disk is being changed")
			b.check("held")
			b.click("#paused button", "Release")
			b.gone("#paused", "the disk")
		}

		// Who changed what, and tokens, are for who may see them.
		if got := offered("#audit-link, #tokens-link"); got != map[string]int{"viewer": 0, "operator": 0, "admin": 2}[role] {
			t.Errorf("a %s finds %d links to the audit trail and to tokens", role, got)
		}
		if role == "admin" {
			b.click("header a", "Audit")
			b.find("td", "node.drain")
			b.find("td", "operator")
			b.check("audit trail")
			b.write("[name=action]", "hold")
			b.gone("td", "node.drain")
			b.click("header a", "Tokens")
			b.find("tbody th", "operator")
			b.write("[name=Name]", "made")
			b.click("[data-action=create]", "")
			b.find(".secret", "The secret of made")
			b.find("tbody th", "made")
			b.check("tokens")
			b.click("[aria-label='Delete the token made']", "")
			b.click("dialog button", "Delete")
			b.click("h1", "") // the list is left, and what is gone goes
			b.gone("tbody th", "made")
		}
		b.click("button", "Sign out")
		b.find("h1", "asks for a token")
	}
}

// outcomesAs returns how the executions of a job ended.
func outcomesAs(as func(method, path string, in any) []byte, name string) (list []string) {
	var rows []executionView
	if json.Unmarshal(as("GET", "/v1/jobs/"+name+"/executions", nil), &rows) == nil {
		for _, e := range rows {
			list = append(list, e.Outcome)
		}
	}
	return list
}

// testBoard holds that the overview fits a large screen, that a thousand runs are drawn as what they are, and that rows
// of lists keep their height while what stands in them changes.
func testBoard(t *testing.T, b *browser) {
	p := startServer(t, t.TempDir())
	requestJobs(p, "fast", 80, "200", "404")
	defer b.look(1920, 1080)()
	b.open(p.url + "/#/jobs")
	b.find(".badge.bad", "failed")
	heights := map[string]bool{}
	for range 20 {
		heights[b.run("return [...document.querySelectorAll('tbody tr')].map((r) => r.offsetHeight).join()")] = true
	}
	b.find("tbody", "fast-49")
	if len(heights) > 1 {
		t.Errorf("the rows of a list had %d heights: %v", len(heights), heights)
	}
	p.eventually("a thousand runs", func() bool {
		var line struct{ Runs int }
		p.must("GET", "/v1/timeline", nil, &line)
		return line.Runs > 1000
	})
	b.open(p.url + "/#/")
	b.find(".legend", " of 80 jobs in the last hour")
	b.check("overview of a busy server")
	if got := b.run("return document.documentElement.scrollHeight + ' ' + document.documentElement.scrollWidth"); got != "1080 1920" {
		t.Errorf("the overview takes %s pixels on a screen of 1080 1920", got)
	}
	if got := b.run("return document.querySelectorAll('.lane .unknown').length + ' ' + document.querySelectorAll('.lane').length + ' ' + (document.querySelectorAll('.lane g rect.bad').length > 0) + ' ' + (document.querySelectorAll('.lane .due').length > 400)"); got != "0 8 true true" {
		t.Errorf("lanes whose beginning is unknown, lanes, whether failures and what is due are drawn: %s", got)
	}
	b.screenshots("overview")
}

// testTraffic holds that a page that is open costs little on a busy server: a list at most 0.5 MB a minute, a job at most
// 60 requests. The clock of the page runs six times as fast, so that a minute takes ten seconds.
func testTraffic(t *testing.T, b *browser) {
	const speed, minute = 6, time.Minute / 6
	p := startServer(t, t.TempDir())
	requestJobs(p, "busy", 50, "200")
	m := newMiddleman(t, p.url, "")
	var script struct{ Identifier string }
	b.must("POST", "/goog/cdp/execute", map[string]any{"cmd": "Page.addScriptToEvaluateOnNewDocument", "params": map[string]any{"source": fmt.Sprintf(`{
		const speed = %d, timeout = window.setTimeout, date = Date.now, now = performance.now.bind(performance), begun = date();
		window.setTimeout = (f, ms, ...more) => timeout(f, ms / speed, ...more);
		Date.now = () => begun + (date() - begun) * speed;
		performance.now = () => now() * speed;
	}`, speed)}}, &script)
	defer b.devtools("Page.removeScriptToEvaluateOnNewDocument", map[string]any{"identifier": script.Identifier})
	for _, view := range []string{"jobs", "jobs/busy-07"} {
		b.open("about:blank")
		bytes, requests := m.bytes.Load(), m.requests.Load()
		b.open(m.URL + "/#/" + view)
		b.find("main", "busy-07")
		begun := time.Now()
		p.eventually("a minute of the page", func() bool { return time.Since(begun) > minute })
		bytes, requests = m.bytes.Load()-bytes, m.requests.Load()-requests
		t.Logf("%q costs %d kB and %d requests a minute", view, bytes/1000, requests)
		files := int64(len(pageFiles())) // that a visit begins with
		if bytes > 500_000 || requests-files > 60 {
			t.Errorf("%q costs %d bytes and %d requests a minute, want at most 500,000 and 60", view, bytes, requests-files)
		}
	}
}

// guarded starts a server with access control, and returns its first token, and how to use it with the client and, with
// that token, with requests.
func guarded(t *testing.T) (p *process, root string, cli func(secret string, args ...string) tokenView, as func(method, path string, in any) []byte) {
	t.Helper()
	p = launch(t, program(t, t.TempDir(), nil, "agent", "--server", "--bootstrap-expect=1", "--acl", "--http-addr=127.0.0.1:0", "--bind-addr=127.0.0.1:0", "--data-dir=data"))
	cli = func(secret string, args ...string) tokenView {
		t.Helper()
		var out []byte
		var err error
		p.eventually(strings.Join(args, " "), func() bool {
			out, err = program(t, p.cmd.Dir, []string{"BELFRY_TOKEN=" + secret}, append(args, "--http-addr="+strings.TrimPrefix(p.url, "http://"))...).Output()
			return err == nil
		})
		var v tokenView
		if err := json.Unmarshal(out, &v); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		return v
	}
	root = cli("", "acl", "bootstrap", "--data-dir=data").SecretID
	as = func(method, path string, in any) []byte {
		t.Helper()
		doc, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		r, err := http.NewRequest(method, p.url+path, bytes.NewReader(doc))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Dkron-Token", root)
		res, err := client.Do(r)
		if err != nil || res.StatusCode > 299 {
			t.Fatalf("%s %s: %v, %v", method, path, res, err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return body
	}
	return p, root, cli, as
}

// requestJobs makes n jobs that send a request each second and expect the statuses in turn.
func requestJobs(p *process, prefix string, n int, statuses ...string) {
	for i := range n {
		config := map[string]string{"method": "GET", "url": p.url + "/health", "expectCode": statuses[i%len(statuses)]}
		p.must("POST", "/v1/jobs", &job{Name: fmt.Sprintf("%s-%02d", prefix, i), Schedule: "@every 1s", Executor: executorHTTP, ExecutorConfig: config}, nil)
	}
}

// testViewer signs in with a token that may only look.
func testViewer(t *testing.T, b *browser) {
	p, root, cli, as := guarded(t)
	j := shellJob("guarded", "@manually", "echo begun; sleep 600")
	j.ExecutorConfig["env"] = "PASSWORD=hunter2"
	as("POST", "/v1/jobs", j)
	as("POST", "/v1/jobs/guarded", nil)

	b.open(p.url + "/#/jobs")
	b.write("#token", "nonsense")
	b.click("button", "Sign in")
	b.find(".error", "does not take")
	b.check("sign-in")
	viewer := cli(root, "acl", "token", "create", "--name=wall", "--policy=viewer")
	b.write("#token", viewer.SecretID)
	b.click("button", "Sign in")
	b.find("tbody", "guarded")
	b.find(".badge.busy", "running")
	nothing := func(what string) {
		t.Helper()
		if n := b.run("return [...document.querySelectorAll('[data-action=run], [data-action=toggle], [data-action=delete], [data-action=kill], a[href$=edit], #new')].filter((e) => e.checkVisibility()).length"); n != "0" {
			t.Errorf("%s: a viewer is offered %s things that he may not do", what, n)
		}
		b.check(what)
	}
	nothing("jobs")
	b.screenshots("viewer")
	b.click("tbody a", "guarded")
	b.find("dd", "env=<hidden>")
	nothing("job")
	if text := b.run("return document.documentElement.textContent"); strings.Contains(text, "hunter2") {
		t.Error("a viewer sees a secret")
	}
	b.click("tbody a", "ago")
	b.find("#output", "begun")
	nothing("execution")
	b.open(p.url + "/#/jobs/guarded/edit")
	b.find("main", "may not change this job")
	if b.run("return document.querySelectorAll('[data-action=save], fieldset:enabled').length") != "0" {
		t.Error("a viewer is offered to save")
	}
	b.check("form of a viewer")
	b.click("header a", "Overview")
	b.find("#running", "guarded")
	nothing("overview")

	// Who may run it is offered that, and no more.
	operator := cli(root, "acl", "token", "create", "--name=hand", "--policy=operator")
	b.click("button", "Sign out")
	b.write("#token", operator.SecretID)
	b.click("button", "Sign in")
	b.find("#running", "guarded")
	b.open(p.url + "/#/jobs/guarded")
	b.find("button", "Run")
	if b.run("return document.querySelectorAll('[data-action=delete], a[href$=edit]').length") != "0" {
		t.Error("an operator is offered to delete or to edit")
	}

	// A token that is deleted ends the visit.
	as("DELETE", "/v1/acl/tokens/"+operator.AccessorID, nil)
	b.find("h1", "asks for a token")

	// Who may see one job alone sees that one, and no complaint about the rest.
	as("POST", "/v1/acl/policies/team", map[string]string{"Rules": `{"path": {"/v1/jobs/team-*": {"capabilities": ["read", "create"]}}}`})
	as("POST", "/v1/jobs", shellJob("team-a", "@manually", "true"))
	team := cli(root, "acl", "token", "create", "--name=team", "--policy=team")
	b.write("#token", team.SecretID)
	b.click("button", "Sign in")
	b.find("main", "no policy of this token")
	b.click("header a", "Jobs")
	b.find("tbody", "team-a")
	b.find("button", "Run")
	b.click("tbody a", "team-a")
	b.find("h1", "team-a")
	b.find("button", "Run")
	b.click("header a", "Overview")
	b.find("h1", "Overview")
	b.check("team's overview")

	// What is typed outlives the token.
	as("POST", "/v1/acl/policies/editor", map[string]string{"Rules": `{"path": {"/v1/**": {"capabilities": ["list", "read", "create", "update"]}}}`})
	signIn := func() tokenView {
		t.Helper()
		editor := cli(root, "acl", "token", "create", "--name=editor", "--policy=editor")
		b.write("#token", editor.SecretID)
		b.click("button", "Sign in")
		return editor
	}
	b.click("button", "Sign out")
	b.find("h1", "asks for a token")
	editor := signIn()
	b.find("h1", "Overview")
	b.open(p.url + "/#/new")
	b.write("#f-command", "echo typed")
	as("DELETE", "/v1/acl/tokens/"+editor.AccessorID, nil)
	b.find("h1", "asks for a token")
	signIn()
	b.holds("#f-command", "echo typed")
}

// A middleman passes requests on, as a reverse proxy does, and counts them. It
// can hold back what it passes on.
type middleman struct {
	*httptest.Server
	streams  atomic.Int64 // that are open
	lists    atomic.Int64 // lists of jobs that were asked for
	requests atomic.Int64
	bytes    atomic.Int64 // of the bodies of answers
	refuses  atomic.Int64 // the status in place of streams, 0: none
	broken   atomic.Bool  // answers 502 to everything
	cut      chan struct{}
}

// A weigher counts the bytes of a body.
type weigher struct {
	http.ResponseWriter
	bytes *atomic.Int64
}

func (w weigher) Write(p []byte) (int, error) {
	w.bytes.Add(int64(len(p)))
	return w.ResponseWriter.Write(p)
}

func (w weigher) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func newMiddleman(t *testing.T, to, prefix string) *middleman {
	t.Helper()
	back, err := url.Parse(strings.TrimSuffix(to, prefix))
	if err != nil {
		t.Fatal(err)
	}
	m := &middleman{cut: make(chan struct{})}
	proxy := &httputil.ReverseProxy{FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(back) }, ErrorLog: log.New(io.Discard, "", 0)}
	m.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.requests.Add(1)
		switch refused := m.refuses.Load(); {
		case m.broken.Load():
			w.WriteHeader(http.StatusBadGateway)
			return
		case r.URL.Path == prefix+"/v1/events" && refused != 0:
			w.WriteHeader(int(refused))
			return
		case r.URL.Path == prefix+"/v1/events":
			m.streams.Add(1)
			defer m.streams.Add(-1)
			ctx, cancel := context.WithCancel(r.Context())
			defer cancel()
			go func() {
				select {
				case <-m.cut:
				case <-ctx.Done():
				}
				cancel()
			}()
			r = r.WithContext(ctx)
		case r.URL.Path == prefix+"/v1/jobs":
			m.lists.Add(1)
		}
		proxy.ServeHTTP(weigher{w, &m.bytes}, r)
	}))
	t.Cleanup(func() {
		m.CloseClientConnections()
		m.Close()
	})
	return m
}

// testLive holds that the page hears what happens, costs nothing while nobody
// sees it, and goes on by itself where the stream or everything is cut off: all
// of it behind a proxy and below a path.
func testLive(t *testing.T, b *browser) {
	const prefix = "/belfry"
	p := startServer(t, t.TempDir(), "--http-prefix="+prefix)
	m := newMiddleman(t, p.url, prefix)
	create := func(name string) { p.must("POST", "/v1/jobs", shellJob(name, "@manually", "echo"), nil) }
	streams := func(n int64) {
		t.Helper()
		waitFor(t, fmt.Sprintf("%d streams", n), b.page, func() bool { return m.streams.Load() == n })
	}
	create("first")
	b.open(m.URL + prefix + "/ui/#/jobs")
	b.find("tbody", "first")
	streams(1)

	// What happens is shown soon, and much of it is read at once.
	begun, lists := time.Now(), m.lists.Load()
	for i := range 40 {
		create(fmt.Sprintf("burst%d", i))
	}
	b.find("tbody", "burst39")
	if took := time.Since(begun); took > 20*time.Second || m.lists.Load()-lists > int64(took/time.Second)+2 {
		t.Errorf("40 jobs were shown after %v, and for %d lists", took, m.lists.Load()-lists)
	}

	// Nobody sees it, and nothing is asked.
	b.hide(true)
	streams(0)
	requests := m.requests.Load()
	create("unseen")
	b.gone("tbody", "unseen")
	if n := m.requests.Load() - requests; n != 0 {
		t.Errorf("%d requests while the page was hidden", n)
	}
	b.hide(false)
	b.find("tbody", "unseen")
	streams(1)

	// Without a stream the page asks by itself.
	m.refuses.Store(http.StatusServiceUnavailable)
	m.cut <- struct{}{}
	streams(0)
	create("polled")
	b.find("tbody", "polled")
	if b.run("return document.getElementById('connection').hidden") != "true" {
		t.Error("a refused stream counts as a server that does not answer")
	}

	// Without an answer it says so, and goes on when there is one.
	m.broken.Store(true)
	b.find("#connection", "not answered since")
	b.find("tbody", "polled")
	create("after")
	m.refuses.Store(0)
	m.broken.Store(false)
	b.find("tbody", "after")
	waitFor(t, "end of the complaint", b.page, func() bool { return b.run("return document.getElementById('connection').hidden") == "true" })
	b.check("live")
	if got := b.run("return performance.getEntriesByType('resource').map((e) => e.name).filter((name) => !name.startsWith(arguments[0])).join()", m.URL+prefix+"/"); got != "" {
		t.Errorf("the page asked elsewhere: %s", got)
	}

	// Neither does it go on without a server.
	b.open(p.url + "/#/jobs")
	b.find("tbody", "first")
	p.kill()
	b.find("#connection", "not answered since")
}

// testSteady holds that a list stays under the pointer, the focus and a selection,
// and says what waits; and that a double click runs a job once.
func testSteady(t *testing.T, b *browser) {
	p := startServer(t, t.TempDir())
	create := func(name string) { p.must("POST", "/v1/jobs", shellJob(name, "@manually", "true"), nil) }
	names := func() string {
		return b.run("return [...document.querySelectorAll('tbody tr')].map((row) => row.dataset.key).join(' ')")
	}
	settled := func(want string) {
		t.Helper()
		waitFor(t, "list of "+want, b.page, func() bool {
			return names() == want && b.run("return document.getElementById('waiting').textContent") == ""
		})
	}
	for _, name := range []string{"m1", "m2", "m3"} {
		create(name)
	}
	b.open("about:blank")
	b.open(p.url + "/#/jobs")
	b.point("tbody a", "m2", 0)
	create("a1")
	p.must("DELETE", "/v1/jobs/m1", nil, nil)
	b.find("#waiting", "1 new, 1 gone")
	if got := names(); got != "m1 m2 m3" {
		t.Errorf("under the pointer the list became %s", got)
	}
	b.check("list that waits")
	b.screenshots("waiting")
	b.point("h1", "Jobs", 0)
	settled("a1 m2 m3")

	// The focus, and what is selected, stay as well.
	b.run("document.querySelector('[data-action=run][data-job=m2]').focus(); getSelection().selectAllChildren(document.querySelector('[data-key=m3] th'))")
	create("a2")
	b.find("#waiting", "1 new, 0 gone")
	if got := b.run("return document.activeElement.dataset.job + ' ' + getSelection()"); got != "m2 m3" {
		t.Errorf("focus and selection are %q", got)
	}
	b.run("document.activeElement.blur(); getSelection().removeAllRanges()")
	settled("a1 a2 m2 m3")

	b.point("[data-action=run][data-job=m2]", "Run", 2)
	b.find("#said", "m2 was started")
	b.point("[data-action=run][data-job=m3]", "Run", 1)
	b.find("#said", "m3 was started")
	p.eventually("runs", func() bool { return len(outcomes(p, "m3")) == 1 && len(outcomes(p, "m2")) >= 1 })
	if n := len(outcomes(p, "m2")); n != 1 {
		t.Errorf("a double click ran the job %d times", n)
	}

	// Nor does another order move them.
	b.open(p.url + "/#/jobs?sort=status")
	b.point("tbody a", "a1", 0)
	before := names()
	p.must("POST", "/v1/jobs/a1", nil, nil)
	b.find("#waiting", "in another order")
	if got := names(); got != before {
		t.Errorf("under the pointer the order became %s, and was %s", got, before)
	}
	b.point("h1", "Jobs", 0)
	settled("a2 a1 m2 m3")

	// A link keeps leading where it led: what is under the pointer does not become another job's.
	b.open(p.url + "/#/jobs/m2")
	b.find("tbody tr", "by hand")
	b.point("tbody a", "ago", 0)
	href := b.run("return window.link = document.querySelector('tbody a')")
	p.must("POST", "/v1/jobs/m2", nil, nil)
	b.find("#waiting", "1 new")
	if got := b.run("return window.link.isConnected && window.link.href"); got != href {
		t.Errorf("a link to %s leads to %s", href, got)
	}

	// A list by the next run begins with what runs next.
	p.must("POST", "/v1/jobs", shellJob("soon", "@every 1h", "true"), nil)
	off := shellJob("off", "@every 1m", "true")
	off.Disabled = true
	p.must("POST", "/v1/jobs", off, nil)
	b.open(p.url + "/#/jobs?sort=next")
	b.find("tbody tr:first-child", "soon")
}

// testDraft holds that what is typed is kept until it is saved or given up, and
// that what is wrong stays said.
func testDraft(t *testing.T, b *browser) {
	p := startServer(t, t.TempDir())
	m := newMiddleman(t, p.url, "")
	b.open("about:blank")
	b.open(m.URL + "/#/jobs")
	b.find("h2", "no jobs yet")
	b.click("a", "Start from nothing")
	b.write("#f-name", "typed")
	b.write("#f-schedule", "@hourly")
	b.click("button", "Create")
	b.find("#e-command", "missing")
	b.write("#f-command", "echo typed")
	b.must("POST", "/back", nil, nil)
	b.find("h2", "no jobs yet")
	b.must("POST", "/forward", nil, nil)
	b.holds("#f-command", "echo typed")
	b.must("POST", "/refresh", nil, nil)
	b.holds("#f-command", "echo typed")
	b.find("#notice", "unsaved changes")

	// Another executor and back.
	b.run("const f = document.getElementById('f-executor'); for (const v of ['http', 'shell']) { f.value = v; f.dispatchEvent(new Event('input', { bubbles: true })) }")
	b.holds("#f-command", "echo typed")

	// Beside a JSON that is none the fields go on, and take nothing from it.
	text := `{"name": "typed", "schedule": "@hourly", "executor": "shell", "executor_config": {"command": "echo json"}`
	b.write("#f-json", text)
	b.write("#f-displayname", "Shown")
	b.holds("#f-json", text)
	b.click("button", "Create")
	b.find("#e-json", "JSON")
	b.must("POST", "/element/"+b.find("#f-json", "")+"/value", map[string]string{"text": "}"}, nil)
	b.holds("#f-command", "echo json")
	b.holds("#f-displayname", "Shown")

	// What is wrong stays said, whether the server said it or is away.
	b.write("#f-name", "Not a name")
	b.click("button", "Create")
	b.find("#e-name", "lower")
	b.write("#f-displayname", "Shown again")
	b.find("#e-name", "lower")
	b.write("#f-name", "typed")
	m.broken.Store(true)
	b.click("button", "Create")
	b.find("#e-form", "does not answer")
	m.broken.Store(false)
	waitFor(t, "end of the complaint", b.page, func() bool { return b.run("return document.getElementById('connection').hidden") == "true" })
	b.find("#e-form", "does not answer")
	b.check("form that was refused")
	b.screenshots("refused")
	b.click("button", "Create")
	b.find("#said", "typed was created")
	b.find("dd", "echo json")

	// A job that is deleted elsewhere takes nothing with it.
	b.click("a", "Edit")
	b.write("#f-command", "echo kept")
	p.must("DELETE", "/v1/jobs/typed", nil, nil)
	b.find("#notice", "has been deleted")
	b.holds("#f-command", "echo kept")
	b.click("button", "Save")
	b.find("dd", "echo kept")

	// What is given up is gone.
	b.click("a", "Edit")
	b.write("#f-command", "echo dropped")
	b.click("a", "Cancel")
	b.find("dd", "echo kept")
	b.click("a", "Edit")
	b.holds("#f-command", "echo kept")
}

// testTwoTabs holds that only what was changed in a form is saved, and nothing
// onto a job that has changed meanwhile.
func testTwoTabs(t *testing.T, b *browser) {
	p := startServer(t, t.TempDir())
	store := func(change func(*job)) {
		j := shellJob("shared", "@manually", "echo one")
		change(j)
		p.must("POST", "/v1/jobs", j, nil)
	}
	store(func(*job) {})
	b.open("about:blank")
	b.open(p.url + "/#/jobs/shared/edit")
	b.write("#f-command", "echo two")
	b.hide(true) // it hears nothing of the next change
	store(func(j *job) {
		j.Disabled, j.Retries, j.ExecutorConfig["env"] = true, 3, "A=1"
	})
	b.click("button", "Save")
	b.find("#notice", "disabled")
	b.find("#e-form", "Not saved")
	b.holds("#f-command", "echo two")
	b.holds("#f-env", "A=1")
	b.check("form of a job that was changed")
	b.screenshots("changed")
	b.hide(false)
	b.click("button", "Save")
	b.find("dd", "echo two")
	var got job
	p.must("GET", "/v1/jobs/shared", nil, &got)
	if !got.Disabled || got.Retries != 3 || got.ExecutorConfig["env"] != "A=1" || got.ExecutorConfig["command"] != "echo two" {
		t.Errorf("the job is %+v", got)
	}

	// A form that hears of it says so at once.
	b.click("a", "Edit")
	b.holds("#f-command", "echo two")
	store(func(j *job) { j.Owner = "other" })
	b.find("#notice", "owner")
	b.holds("#f-owner", "other")
}

// testFields creates a job whose fields are all set by hand.
func testFields(t *testing.T, b *browser) {
	p := startServer(t, t.TempDir())
	b.open("about:blank")
	b.open(p.url + "/#/new")
	for _, part := range []string{"Placement", "Rules", "Notices"} {
		b.click("summary", part)
	}
	for _, f := range [][2]string{
		{"name", "full"}, {"schedule", "@manually"}, {"command", "echo $A"}, {"env", "A=1,2\nB=x=y"}, {"cwd", "/tmp"}, {"tags", "role=web:1"}, {"owner", "Ada"},
		{"metadata", "team=data"}, {"retries", "2"}, {"mutex", "door"}, {"timeout", "10m"}, {"catchup", "1h"}, {"max_silence", "26h"},
		{"notify", "failed, recovered: https://127.0.0.1:1/hook every"}, {"processors", "log forward=true\nabsent"},
	} {
		b.write("#f-"+f[0], f[1])
	}
	b.must("POST", "/element/"+b.find("#f-concurrency", "")+"/value", map[string]string{"text": "is skipped"}, nil)
	b.check("whole form")
	b.screenshots("fields")
	b.click("button", "Create")
	b.find("h1", "full")
	b.find(".warning", "absent")
	var got job
	p.must("GET", "/v1/jobs/full", nil, &got)
	want := shellJob("full", "@manually", "echo $A")
	want.ExecutorConfig["env"], want.ExecutorConfig["cwd"] = `A=1\,2,B=x=y`, "/tmp"
	want.Tags, want.Owner, want.Metadata = map[string]string{"role": "web:1"}, "Ada", map[string]string{"team": "data"}
	want.Retries, want.Mutex, want.Timeout, want.Catchup, want.MaxSilence = 2, "door", "10m", "1h", "26h"
	want.Concurrency = concurrencyForbid
	want.Processors = map[string]map[string]string{"log": {"forward": "true"}, "absent": {}}
	if got.Notify == nil || len(got.Notify) != 1 {
		t.Errorf("the receivers are %+v", got.Notify)
	}
	want.Notify = got.Notify
	if diff := cmp.Diff(*want, got); diff != "" {
		t.Errorf("the job differs (-want +got):\n%s", diff)
	}
}

// testAddresses holds that an address of nothing says so, that Back leads to where
// the reader was, and that a view of a server that is away says that.
func testAddresses(t *testing.T, b *browser) {
	p := startServer(t, t.TempDir())
	m := newMiddleman(t, p.url, "")
	for i := range 60 {
		p.must("POST", "/v1/jobs", shellJob(fmt.Sprintf("job%02d", i), "@manually", "true"), nil)
	}
	b.open("about:blank")
	b.open(m.URL + "/#/garbage")
	b.find("h1", "no such page")
	b.check("garbage")
	b.open(m.URL + "/#/jobs?page=999")
	b.find("main", "no page 999")
	b.click("a", "To its first page")
	b.find("tbody", "job49")
	b.run("scrollTo(0, 700)")
	b.click("tbody a", "job20")
	b.find("h1", "job20")
	if y := b.run("return scrollY"); y != "0" {
		t.Errorf("a new view begins at %s", y)
	}
	b.must("POST", "/back", nil, nil)
	b.find("tbody", "job49")
	waitFor(t, "old place", func() string { return b.run("return scrollY") }, func() bool { return b.run("return scrollY") == "700" })
	m.broken.Store(true)
	m.cut <- struct{}{}
	b.find("#connection", "not answered since")
	b.click("header a", "Overview")
	b.find("h1", "does not answer")
	m.broken.Store(false)
	b.find("h1", "Overview")
}

// testClock holds that the page goes by the server's clock, and says how far the
// viewer's is from it.
func testClock(t *testing.T, b *browser) {
	p := startServer(t, t.TempDir())
	p.must("POST", "/v1/jobs", shellJob("timed", "@manually", "[ -e ended ] && sleep 600; touch ended"), nil)
	p.must("POST", "/v1/jobs/timed", nil, nil)
	p.eventually("run", func() bool { return len(outcomes(p, "timed")) == 1 && outcomes(p, "timed")[0] != "" })
	p.must("POST", "/v1/jobs/timed", nil, nil)
	var script struct{ Identifier string }
	b.must("POST", "/goog/cdp/execute", map[string]any{"cmd": "Page.addScriptToEvaluateOnNewDocument", "params": map[string]string{"source": `
		const RealDate = Date, ahead = 600_000;
		window.Date = class extends RealDate {
			constructor(...args) { super(...(args.length ? args : [RealDate.now() - ahead])); }
			static now() { return RealDate.now() - ahead; }
		};`}}, &script)
	defer b.devtools("Page.removeScriptToEvaluateOnNewDocument", map[string]any{"identifier": script.Identifier})
	b.open("about:blank")
	b.open(p.url + "/")
	b.find("#running", "usually")
	b.find("#clock", "behind the server's")
	b.check("overview with a wrong clock")
	b.open(p.url + "/#/jobs/timed")
	b.find("tbody a", "s ago")
	if b.run("return [...document.querySelectorAll('.bar rect')].some((e) => e.getAttribute('width') < 1)") != "false" {
		t.Error("a run took less than no time")
	}
}

// testOutput holds that an output that is followed goes on where it was, after
// a look at another tab and after a restart of the server.
func testOutput(t *testing.T, b *browser) {
	dir := t.TempDir()
	p := startServer(t, dir)
	p.must("POST", "/v1/jobs", shellJob("long", "@manually", "seq 300; while [ ! -e "+dir+"/more ]; do sleep .05; done; echo later; sleep 600"), nil)
	p.must("POST", "/v1/jobs/long", nil, nil)
	var list []executionView
	p.eventually("run", func() bool { p.must("GET", "/v1/jobs/long/executions", nil, &list); return len(list) == 1 })
	b.open("about:blank")
	b.open(p.url + "/#/jobs/long/executions/" + list[0].ID)
	b.find("#output", "300")
	b.run("output.scrollTop = 100; window.first = output.firstChild")
	same := func(what string) {
		t.Helper()
		if got := b.run("return [output.scrollTop, output.firstChild === window.first, output.textContent.match(/^17$/gm).length]"); got != "100,true,1" {
			t.Errorf("%s: where it was, whether it is the same, how often it is there: %s", what, got)
		}
	}
	b.hide(true)
	b.hide(false)
	if err := os.WriteFile(dir+"/more", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.find("#output", "later")
	same("after a look elsewhere")
	p.kill()
	b.find("#following", "stopped answering")
	startServer(t, dir, "--http-addr="+strings.TrimPrefix(p.url, "http://"))
	b.find("#following", "all of it")
	b.find(".badge", "interrupted")
	same("after a restart")
	b.check("output after a restart")
}

// testOtherOrigin holds that a page of another origin can do and read nothing,
// whether it is of the same site, as other servers of the machine are, or not.
func testOtherOrigin(t *testing.T, b *browser) {
	p := startServer(t, t.TempDir())
	p.must("POST", "/v1/jobs", shellJob("victim", "@manually", "echo"), nil)
	_, before := p.get("/v1/jobs", nil)
	attacker := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, "testdata/attacker.html") }))
	defer attacker.Close()
	for _, origin := range []string{attacker.URL, strings.Replace(attacker.URL, "127.0.0.1", "attacker.test", 1)} {
		b.open("about:blank")
		b.open(origin + "/#" + p.url)
		b.click("#go", "")
		b.find("#done", "done")
		if got := b.run("return document.getElementById('read').textContent"); got != "" {
			t.Errorf("%s read:\n%s", origin, got)
		}
		// The frame of the page itself shows that it was refused.
		b.must("POST", "/frame", map[string]any{"id": 0}, nil)
		if at := b.run("return document.URL"); !strings.HasPrefix(at, "chrome-error:") {
			t.Errorf("%s has a frame of %s", origin, at)
		}
		b.must("POST", "/frame", map[string]any{"id": nil}, nil)
	}
	_, after := p.get("/v1/jobs", nil)
	if before != after {
		t.Errorf("jobs are\n%s\nand were\n%s", after, before)
	}
	if ran := outcomes(p, "victim"); len(ran) > 0 {
		t.Errorf("the job ran: %v", ran)
	}
	var pause struct{ Paused bool }
	if p.must("GET", "/v1/pause", nil, &pause); pause.Paused {
		t.Error("the server was paused")
	}
}

// testRebinding holds that a page whose name was pointed at this server reads
// and does nothing: to the browser it is of the server's own origin.
func testRebinding(t *testing.T, b *browser) {
	p := startServer(t, t.TempDir())
	p.must("POST", "/v1/jobs", shellJob("victim", "@manually", "echo"), nil)
	b.open(strings.Replace(p.url, "127.0.0.1", "attacker.test", 1) + "/")
	b.find("body", "not called")
	for _, request := range [][2]string{{"GET", "/v1/jobs"}, {"GET", "/v1/jobs/victim"}, {"GET", "/app.js"}, {"POST", "/v1/jobs/victim"}, {"DELETE", "/v1/jobs/victim"}} {
		got := b.run("const r = new XMLHttpRequest(); r.open(arguments[0], arguments[1], false); r.send(); return r.status + ' ' + r.responseText", request[0], request[1])
		if !strings.HasPrefix(got, "421 ") || strings.Contains(got, "victim") {
			t.Errorf("%s %s answers %s", request[0], request[1], got)
		}
	}
	if ran := outcomes(p, "victim"); len(ran) > 0 {
		t.Errorf("the job ran: %v", ran)
	}
}

// TestPage_Files holds that the page is small, and the same whether it is sent
// compressed or not.
func TestPage_Files(t *testing.T) {
	mux := http.NewServeMux()
	servePage(mux)
	get := func(path string, headers ...string) *httptest.ResponseRecorder {
		r, w := httptest.NewRequest("GET", path, nil), httptest.NewRecorder()
		for i := 0; i < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		mux.ServeHTTP(w, r)
		return w
	}
	sent := 0
	for name := range pageFiles() {
		plain, small := get("/"+name), get("/"+name, "Accept-Encoding", "br, gzip;q=0.5")
		sent += small.Body.Len()
		z, err := gzip.NewReader(small.Body)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := io.ReadAll(z)
		if err != nil || !bytes.Equal(got, plain.Body.Bytes()) || len(got) == 0 {
			t.Errorf("%s differs when it is compressed, %v", name, err)
		}
		if plain.Header().Get("ETag") == small.Header().Get("ETag") || small.Header().Get("Vary") != "Accept-Encoding" {
			t.Errorf("%s: caches cannot tell the compressed from the other: %v", name, small.Header())
		}
		if again := get("/"+name, "Accept-Encoding", "gzip", "If-None-Match", small.Header().Get("ETag")); again.Code != http.StatusNotModified {
			t.Errorf("%s is sent again with status %d", name, again.Code)
		}
		if get("/"+name, "Accept-Encoding", "gzip;q=0").Header().Get("Content-Encoding") != "" {
			t.Errorf("%s is compressed to who does not take that", name)
		}
	}
	if sent > 40_000 {
		t.Errorf("the page has %d bytes compressed, want at most 40,000", sent)
	}
	t.Logf("%d bytes, compressed", sent)
}

// contrast returns that of two colours, as WCAG 2 computes it: 1 to 21.
func contrast(a, b [3]float64) float64 {
	luminance := func(c [3]float64) float64 {
		for i, v := range c {
			if c[i] = v / 12.92; v > 0.04045 {
				c[i] = math.Pow((v+0.055)/1.055, 2.4)
			}
		}
		return 0.2126*c[0] + 0.7152*c[1] + 0.0722*c[2]
	}
	x, y := luminance(a), luminance(b)
	return (max(x, y) + 0.05) / (min(x, y) + 0.05)
}

// TestPage_Contrast holds that every text can be read on every ground that it
// stands on, in both schemes (WCAG 2 AA: 4.5), and that drawings can be seen (3).
func TestPage_Contrast(t *testing.T) {
	doc, err := web.ReadFile("web/style.css")
	if err != nil {
		t.Fatal(err)
	}
	schemes := regexp.MustCompile(`(?s):root \{(.*?)\}`).FindAllStringSubmatch(string(doc), -1)
	if len(schemes) != 2 {
		t.Fatalf("the style has %d schemes", len(schemes))
	}
	for i, scheme := range schemes {
		colours := map[string][3]float64{}
		for _, m := range regexp.MustCompile(`--(\w+): #(\w+);`).FindAllStringSubmatch(scheme[1], -1) {
			hex := m[2]
			if len(hex) == 3 {
				hex = string([]byte{hex[0], hex[0], hex[1], hex[1], hex[2], hex[2]})
			}
			n, err := strconv.ParseUint(hex, 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			colours[m[1]] = [3]float64{float64(n>>16) / 255, float64(n>>8&255) / 255, float64(n&255) / 255}
		}
		pairs := map[[2]string]float64{{"panel", "text"}: 4.5, {"panel", "bad"}: 4.5, {"panel", "link"}: 4.5} // light on dark: what was said, and the first button
		for _, ground := range []string{"ground", "panel", "soft"} {
			for _, text := range []string{"text", "quiet", "link", "good", "bad", "odd", "busy", "violet", "cyan"} {
				pairs[[2]string{text, ground}] = 4.5
			}
		}
		for pair, least := range pairs {
			if got := contrast(colours[pair[0]], colours[pair[1]]); got < least {
				t.Errorf("scheme %d: --%s on --%s has a contrast of %.2f, want %.1f", i, pair[0], pair[1], got, least)
			}
		}
	}
}
