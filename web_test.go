package main

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"
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
	t.Cleanup(func() {
		if err := b.send("DELETE", "", nil, nil); err != nil {
			t.Log(err)
		}
		cmd.Process.Kill()
		cmd.Wait() // it was killed
	})
	args := []string{"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--window-size=1300,900", "--user-data-dir=" + filepath.Join(t.TempDir(), "browser")}
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

// TestPage holds that the page does what a first visitor wants of it, and that
// what looks like markup is shown as it is.
func TestPage(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a browser")
	}
	b := newBrowser(t)
	p := startServer(t, t.TempDir())
	const markup = `<img src=x onerror="document.title=1">`

	// A first visit.
	b.open(p.url + "/dashboard")
	b.click("a", "Look at the example")
	b.find("#ticks li", "in ")
	b.screenshots("form")

	// What is wrong is said at its field.
	b.write("[name=schedule]", "@every never")
	b.find("#e-schedule", "never")
	b.write("[name=schedule]", "@every 1s")
	b.write("[name=displayname]", markup)
	b.write("[name=command]", "echo '"+markup+"'; printf '\\033[31m'; sleep 2")
	b.click("button", "Create")

	// It runs, and its output is text.
	b.find("h1", markup)
	b.find(".badge.busy", "running")
	b.click("tbody a", "ago")
	b.find("#output", markup)
	b.find("#output", "␛[31m")
	b.find("#following", "all of it")
	b.screenshots("output")

	// So is that of what fails.
	p.must("POST", "/v1/jobs", &job{Name: "fails", Schedule: "@manually", Executor: executorShell, Metadata: map[string]string{"team": markup},
		ExecutorConfig: map[string]string{"shell": "true", "command": "echo '" + markup + "'; exit 3"}}, nil)
	p.must("POST", "/v1/jobs/fails", nil, nil)
	b.click("header a", "Overview")
	b.find(".line", markup)
	b.screenshots("overview")

	b.click("header a", "Jobs")
	b.find("tbody", "fails")
	b.click("[aria-label='Disable hello']", "")
	b.find(".badge", "disabled")
	b.write("[name=q]", "fai")
	b.gone("tbody", "hello")
	if hash := b.run("return location.hash"); !strings.Contains(hash, "q=fai") {
		t.Errorf("the search is not in the address %q", hash)
	}
	b.screenshots("jobs")
	b.click("[aria-label='Delete fails']", "")
	b.find("#confirm-question", "fails")
	b.click("#confirm button", "Delete")
	b.find("main", "No job is like that")

	b.open(p.url + "/ui/#/jobs/hello/show")
	b.find("h1", markup)
	if title := b.run("return document.title"); title == "1" || b.run("return document.images.length") != "0" {
		t.Errorf("a text became markup; the title is %q", title)
	}

	// What runs can be ended.
	p.must("POST", "/v1/jobs", shellJob("long", "@manually", "echo begun; sleep 600"), nil)
	p.must("POST", "/v1/jobs/long", nil, nil)
	b.open(p.url + "/#/jobs/long")
	b.click("tbody a", "")
	b.find("#output", "begun")
	b.click("button", "Kill")
	b.click("#confirm button", "End it")
	b.find(".badge", "killed")

	for _, c := range b.complaints() {
		t.Errorf("the browser says: %s", c)
	}

	// Without a server the page says so.
	p.kill()
	b.find("#connection", "not answered since")
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
	files, err := web.ReadDir("web")
	if err != nil {
		t.Fatal(err)
	}
	sent := 0
	for _, f := range files {
		if pageTypes[path.Ext(f.Name())] == "" {
			continue
		}
		plain, small := get("/"+f.Name()), get("/"+f.Name(), "Accept-Encoding", "br, gzip;q=0.5")
		sent += small.Body.Len()
		z, err := gzip.NewReader(small.Body)
		if err != nil {
			t.Fatalf("%s: %v", f.Name(), err)
		}
		got, err := io.ReadAll(z)
		if err != nil || !bytes.Equal(got, plain.Body.Bytes()) || len(got) == 0 {
			t.Errorf("%s differs when it is compressed, %v", f.Name(), err)
		}
		if plain.Header().Get("ETag") == small.Header().Get("ETag") || small.Header().Get("Vary") != "Accept-Encoding" {
			t.Errorf("%s: caches cannot tell the compressed from the other: %v", f.Name(), small.Header())
		}
		if again := get("/"+f.Name(), "Accept-Encoding", "gzip", "If-None-Match", small.Header().Get("ETag")); again.Code != http.StatusNotModified {
			t.Errorf("%s is sent again with status %d", f.Name(), again.Code)
		}
		if get("/"+f.Name(), "Accept-Encoding", "gzip;q=0").Header().Get("Content-Encoding") != "" {
			t.Errorf("%s is compressed to who does not take that", f.Name())
		}
	}
	if sent > 60_000 {
		t.Errorf("the page has %d bytes compressed, want at most 60,000", sent)
	}
}
