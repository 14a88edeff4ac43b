package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// The files testdata/acl/*.policy read like policy. A line is one of
//
//	path GLOB CAPABILITY…          a rule of the policy that follows
//	builtin NAME                   the policy is the built-in one instead
//	allow CAPABILITY[,…] PATH…     each of these is granted on each path
//	deny CAPABILITY[,…] PATH…      none is
//	policy                         the next one begins
//
// "any" is every capability; # begins a comment.
func TestAllow(t *testing.T) {
	text, err := os.ReadFile("testdata/acl/allow.policy")
	if err != nil {
		t.Fatal(err)
	}
	var rules []string
	var named []policy
	for n, line := range strings.Split(string(text), "\n") {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		switch words[0] {
		case "policy":
			rules, named = nil, nil
		case "builtin":
			p, ok := builtInPolicy(words[1])
			if !ok {
				t.Fatalf("line %d: no built-in policy %q", n+1, words[1])
			}
			named = append(named, p)
		case "path":
			rules = append(rules, `"`+words[1]+`": {"capabilities": ["`+strings.Join(words[2:], `", "`)+`"]}`)
		case "allow", "deny":
			written := policy{"written", `{"path": {` + strings.Join(rules, ", ") + `}}`}
			parsed := parsedRules(append(slices.Clone(named), written))
			if len(parsed) != len(named)+1 {
				t.Fatalf("line %d: a policy above it is invalid", n+1)
			}
			asked := strings.Split(words[1], ",")
			if words[1] == "any" {
				asked = capabilities
			}
			for _, c := range asked {
				for _, path := range words[2:] {
					if got, want := allow(parsed, path, c), words[0] == "allow"; got != want {
						t.Errorf("line %d: allow(%s, %s) = %t, want %t", n+1, path, c, got, want)
					}
				}
			}
		default:
			t.Fatalf("line %d: %q is no word of this file", n+1, words[0])
		}
	}
}

// TestMatchPath_Page: the server and the page mean the same paths by a path of a policy, those in testdata/acl/globs.txt.
func TestMatchPath_Page(t *testing.T) {
	text, err := os.ReadFile("testdata/acl/globs.txt")
	if err != nil {
		t.Fatal(err)
	}
	var rows [][]string // each of glob, path and whether it is meant
	for line := range strings.Lines(string(text)) {
		if row := strings.Fields(line); len(row) == 3 && row[0] != "#" {
			rows = append(rows, row)
			if err := checkGlob(row[0]); err != nil {
				t.Errorf("%s: %v", row[0], err)
			}
			if got := matchPath(row[0], row[1]); fmt.Sprint(got) != row[2] {
				t.Errorf("matchPath(%s, %s) = %t, want %s", row[0], row[1], got, row[2])
			}
		}
	}
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("the page's rule is not tested: install Node.js")
	}
	module, err := web.ReadFile("web/rights.js") // it needs a browser, the function in it does not
	matches := regexp.MustCompile(`(?s)function matches\(.*?\n}\n`).Find(module)
	if err != nil || matches == nil {
		t.Fatal("web/rights.js has no function matches", err)
	}
	out, err := exec.Command(node, "-e", string(matches)+`
		for (const [glob, path, want] of JSON.parse(process.argv[1]))
			if (String(matches(glob, path)) !== want) console.log(`+"`matches(${glob}, ${path}) is not ${want}`"+`);
	`, jsonText(rows)).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("the page: %v\n%s", err, out)
	}
}

// TestACL_Grants writes down what each built-in policy grants on the path of each
// route: a letter for each capability, c r u d l.
func TestACL_Grants(t *testing.T) {
	var table strings.Builder
	for _, p := range builtIn {
		fmt.Fprintf(&table, "%-10s", p.Name)
	}
	paths := map[string]bool{}
	for _, r := range (&api{}).routes() {
		_, path, _ := strings.Cut(strings.TrimSuffix(r.pattern, "/{$}"), " ")
		if r.pattern == runRoute || paths[path] {
			continue
		}
		paths[path] = true
		table.WriteString("\n")
		for _, p := range builtIn {
			granted := ""
			for _, c := range capabilities {
				if allow(parsedRules([]policy{p}), patternName.ReplaceAllString(path, "other"), c) {
					granted += c[:1]
				} else {
					granted += "-"
				}
			}
			fmt.Fprintf(&table, "%-10s", granted)
		}
		table.WriteString(path)
	}
	golden(t, "acl/grants", table.String()+"\n")
}

// TestBuiltIn: the policies that are always there keep their own rules.
func TestBuiltIn(t *testing.T) {
	for _, p := range builtIn {
		if err := p.validate(); err != nil {
			t.Errorf("%s: %v", p.Name, err)
		}
	}
}

func TestCheckGlob(t *testing.T) {
	for _, c := range []struct {
		path string
		ok   bool
	}{
		{"/v1/jobs", true},
		{"/v1/jobs/team-a-*", true},
		{"/v1/jobs/team-a-**", true},
		{"/**", true},
		{"/v1/*/a*b*c", true},
		{"/v1/acl/policies/a%2Fb", true},
		{"", false},
		{"v1/jobs", false},
		{"/v1/**/jobs", false},
		{"/v1/jobs/***", false},
		{"/v1/jobs/[a-z]", false},
		{"/v1/jobs/a?", false},
		{"/v1/jobs/{a,b}", false},
		{"/v1/jobs/a b", false},
		{"/v1/jobs/\x00", false},
		{"/v1/jobs/ä", false},
		{"/" + strings.Repeat("a*", policyStarsMax+1), false},
		{"/" + strings.Repeat("a", policyPathBytesMax), false},
	} {
		if err := checkGlob(c.path); (err == nil) != c.ok {
			t.Errorf("checkGlob(%q) = %v, want ok %t", c.path, err, c.ok)
		}
	}
}

// TestPolicy_Paths: a path that means none of the API's is refused; all that any
// route is asked for can be granted.
func TestPolicy_Paths(t *testing.T) {
	paths := (&api{}).paths()
	check := func(path string) error {
		rules, err := json.Marshal(map[string]any{"path": map[string]any{path: map[string]any{"capabilities": []string{"read"}}}})
		if err != nil {
			t.Fatal(err)
		}
		p := policy{"p", string(rules)}
		if err := p.validate(); err != nil {
			t.Fatal(err)
		}
		return p.checkPaths(paths)
	}
	for _, path := range []string{
		"/v1/jobs/", "/v1/job/*", "/v1/jobs/*/", "/v1/jobs//executions", "/v1/jobs/a/b", "/v2/**", "/jobs", "/v1/jobs/A*", "/v1/jobs/a.b", "/v1/jobs/a%2fb", "/v1/jobs/%",
		"/v1/jobs/*/execution/*", "/v1/acl/policies/", "/metric", "/v1/*/*/*/*/*/*", "/healthz", "/",
	} {
		if check(path) == nil {
			t.Errorf("%s is taken, and means nothing", path)
		}
	}
	for _, path := range append(slices.Clone(paths),
		"/**", "/v1/**", "/v1*", "/v1/jobs/team-*", "/v1/jobs/team-**", "/v1/jobs/a/**", "/v1/jobs/*-prod", "/v1/jobs/*/executions/*/kill", "/v1/acl/policies/a%2Fb", "/v1/*", "/*/jobs", "/health", "/v1/jobs**",
	) {
		if path = patternName.ReplaceAllString(path, "a"); check(path) != nil {
			t.Errorf("%s is refused: %v", path, check(path))
		}
	}
	for _, p := range builtIn {
		if err := p.checkPaths(paths); err != nil {
			t.Errorf("%s: %v", p.Name, err)
		}
	}
	s := newTestServer(t, t.TempDir(), 7)
	w := s.do("POST", "/v1/acl/policies/p", `{"Rules": "{\"path\": {\"/v1/jobs/\": {\"capabilities\": [\"read\"]}}}"}`)
	if w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), "/v1/jobs/{name}") {
		t.Errorf("a policy for nothing: %d %s", w.Code, w.Body)
	}
}

// FuzzMatchPath compares with the rule written down the slow way: every split
// of the path is tried.
func FuzzMatchPath(f *testing.F) {
	f.Add("/v1/jobs/*", "/v1/jobs/a")
	f.Add("/v1/jobs/a-**", "/v1/jobs/a-b/executions")
	f.Add("/a*b*c", "/aXbYc")
	f.Add("/**", "/")
	f.Fuzz(func(t *testing.T, glob, path string) {
		if checkGlob(glob) != nil || len(path) > 60 {
			return
		}
		if got, want := matchPath(glob, path), slowMatch(glob, path, map[[2]int]bool{}); got != want {
			t.Errorf("matchPath(%q, %q) = %t, want %t", glob, path, got, want)
		}
	})
}

func slowMatch(glob, path string, failed map[[2]int]bool) bool {
	at := [2]int{len(glob), len(path)}
	switch {
	case failed[at]:
		return false
	case glob == "**":
		return true
	case glob == "":
		return path == ""
	}
	if glob[0] == '*' {
		for n := range len(path) + 1 {
			if slowMatch(glob[1:], path[n:], failed) {
				return true
			}
			if n < len(path) && path[n] == '/' {
				break
			}
		}
		failed[at] = true
		return false
	}
	ok := path != "" && glob[0] == path[0] && slowMatch(glob[1:], path[1:], failed)
	failed[at] = failed[at] || !ok
	return ok
}

// ---- Requests with tokens

// guarded turns access control of a server on and returns the secret of a
// management token, made as an operator makes it.
func (s *testServer) guarded(dir string) string {
	s.t.Helper()
	s.api.acl, s.api.dir = true, dir
	s.handler = s.api.handler()
	if err := writeBootstrapSecret(dir); err != nil {
		s.t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, bootstrapFile))
	if err != nil {
		s.t.Fatal(err)
	}
	return s.made("", "/v1/acl/bootstrap", `{"Secret": "`+strings.TrimSpace(string(text))+`"}`).SecretID
}

// as sends a request with a secret; "" is none.
func (s *testServer) as(secret, method, target, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.Host = "localhost"
	if secret != "" {
		r.Header.Set("X-Dkron-Token", secret)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, r)
	return w
}

// made makes a token.
func (s *testServer) made(secret, target, body string) tokenView {
	s.t.Helper()
	w := s.as(secret, "POST", target, body)
	var v tokenView
	if err := json.Unmarshal(w.Body.Bytes(), &v); w.Code != http.StatusCreated || err != nil {
		s.t.Fatalf("POST %s: %d %s, %v", target, w.Code, w.Body, err)
	}
	return v
}

// mustAs sends a request and returns the answer, which must have a status.
func (s *testServer) mustAs(status int, secret, method, target, body string, headers ...string) string {
	s.t.Helper()
	w := s.as(secret, method, target, body, headers...)
	if w.Code != status {
		s.t.Errorf("%s %s: %d %s, want %d", method, target, w.Code, w.Body, status)
	}
	return w.Body.String()
}

var patternName = regexp.MustCompile(`\{[a-z]+\}`)

// TestACL_Routes asks every route as everybody, and writes down who gets in: a
// row is a route, a column a token, "in" is any answer but a refusal.
func TestACL_Routes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := newTestServer(t, filepath.Join(dir, "data"), 7)
		root := s.guarded(dir)
		token := func(doc string) string { return s.made(root, "/v1/acl/tokens", doc).SecretID }
		s.mustAs(http.StatusAccepted, root, "POST", "/v1/acl/policies/gone", `{"Rules": "{\"path\": {\"/**\": {\"capabilities\": [\"create\", \"read\", \"list\", \"update\", \"delete\"]}}}"}`)
		s.mustAs(http.StatusAccepted, root, "POST", "/v1/acl/policies/team", `{"Rules": "{\"path\": {\"/v1/jobs/team-*\": {\"capabilities\": [\"create\", \"read\", \"list\", \"update\"]}}}"}`)
		expired := token(`{"Name": "short", "Policies": ["admin"], "ExpirationTTL": "1s"}`)
		unbound, _ := newSecret()
		columns := []struct{ name, header, value string }{
			{"missing", "", ""},
			{"garbage", "X-Dkron-Token", "nonsense"},
			{"unknown", "Authorization", "Bearer " + unbound},
			{"expired", "X-Dkron-Token", expired},
			{"nopolicy", "X-Dkron-Token", token(`{"Name": "orphan", "Policies": ["gone"]}`)},
			{"team", "X-Dkron-Token", token(`{"Name": "team", "Policies": ["team"]}`)},
			{"viewer", "X-Dkron-Token", token(`{"Name": "viewer", "Policies": ["viewer"]}`)},
			{"operator", "Authorization", "Bearer " + token(`{"Name": "operator", "Policies": ["operator"]}`)},
			{"admin", "X-Dkron-Token", token(`{"Name": "admin", "Policies": ["admin"]}`)},
			{"root", "X-Dkron-Token", root},
			{"foreign-host", "X-Dkron-Token", root},
			{"foreign-page", "X-Dkron-Token", root},
		}
		s.mustAs(http.StatusOK, root, "DELETE", "/v1/acl/policies/gone", "")
		wait(2 * time.Second)
		var table strings.Builder
		for _, c := range columns {
			fmt.Fprintf(&table, "%-13s", c.name)
		}
		table.WriteString("\n")
		patterns := []string{"GET /{$}"}
		for _, r := range s.api.routes() {
			patterns = append(patterns, r.pattern)
		}
		for _, pattern := range patterns {
			method, path, _ := strings.Cut(strings.TrimSuffix(pattern, "{$}"), " ")
			path = patternName.ReplaceAllString(path, "other")
			for _, c := range columns {
				r := httptest.NewRequest(method, path, strings.NewReader(`{"name": "other", "schedule": "@manually", "executor": "shell", "executor_config": {"command": "true"}}`))
				r.Host = "localhost"
				if c.header != "" {
					r.Header.Set(c.header, c.value)
				}
				switch c.name {
				case "foreign-host":
					r.Host = "evil.example"
				case "foreign-page":
					r.Header.Set("Origin", "https://evil.example")
				}
				w := httptest.NewRecorder()
				ctx, leave := context.WithTimeout(r.Context(), time.Second) // from what goes on for ever
				s.handler.ServeHTTP(w, r.WithContext(ctx))
				leave()
				cache := "no-store" // what a token reads is nobody else's
				if path == "/" && w.Code == http.StatusOK {
					cache = "no-cache"
				}
				for name, want := range map[string]string{"X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin", "Cache-Control": cache} {
					if got := w.Header()[name]; !slices.Equal(got, []string{want}) {
						t.Errorf("%s as %s: %s %q", pattern, c.name, name, got)
					}
				}
				cell := "in"
				switch w.Code {
				case http.StatusUnauthorized, http.StatusForbidden, http.StatusMisdirectedRequest:
					cell = fmt.Sprint(w.Code)
				}
				if w.Code == http.StatusInternalServerError && path != "/v1/backup" { // there is no cluster to back up here
					t.Errorf("%s as %s: %s", pattern, c.name, w.Body)
				}
				fmt.Fprintf(&table, "%-13s", cell)
			}
			fmt.Fprintf(&table, "%s\n", pattern)
		}
		golden(t, "acl/answers", table.String())
		for _, path := range []string{"/", "/index.html", "/v1/jobs/../../index.html", "/ui", "/dashboard"} {
			if w := s.as("", "GET", path, ""); w.Code/100 > 3 {
				t.Errorf("GET %s without a token: %d", path, w.Code)
			}
		}
	})
}

// TestACL_Attack sends what the routes take, and much that they do not, as
// somebody who may not: by any node, with any token but a good one, at the path
// and at what looks like it, with bodies at random. Nothing changes, nothing that
// is not anybody's to read is read, and nothing fails but with a 4xx.
func TestACL_Attack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := newTestServer(t, filepath.Join(dir, "data"), 7)
		root := s.guarded(dir)
		s.mustAs(http.StatusCreated, root, "POST", "/v1/jobs", `{"name": "other", "schedule": "@manually", "executor": "shell", "executor_config": {"command": "true", "env": "PASSWORD=hunter2"}}`)
		s.mustAs(http.StatusAccepted, root, "POST", "/v1/acl/policies/team", `{"Rules": "{\"path\": {\"/v1/jobs/team-*\": {\"capabilities\": [\"create\", \"read\", \"list\", \"update\", \"delete\"]}}}"}`)
		unknown, _ := newSecret()
		tokens := map[string]string{"none": "", "unknown": unknown, "team": s.made(root, "/v1/acl/tokens", `{"Name": "team", "Policies": ["team"]}`).SecretID,
			"viewer": s.made(root, "/v1/acl/tokens", `{"Name": "viewer", "Policies": ["viewer"]}`).SecretID}
		leader := s.handler
		s.plane.api = leader
		joined := func(name string, runner runner) *plane {
			p := newTestPlane(t, name, runner, nil)
			p.cfg.ID, p.self.ID = "id of "+name, "id of "+name
			followIn(p, s.plane.handler().ServeHTTP)
			p.known["id1"] = p.known["id-leader"]
			delete(p.known, "id-leader")
			p.known["id1"].ID = "id1"
			if p.server != nil {
				p.server.store = s.api.store
				p.server.view.Store(&raftStatus{Leader: server{"node1", "id1"}})
			}
			return p
		}
		follower := &api{node: "node2", store: s.api.store, scheduler: s.api.scheduler, log: s.api.log, acl: true, dir: dir,
			plane: joined("node2", s.node), quit: func() {}}
		agent := &api{node: "node3", log: s.api.log, acl: true, plane: joined("node3", nil), quit: func() {}, stopping: make(chan struct{})}
		nodes := map[string]http.Handler{"leader": leader, "follower": follower.handler(), "agent": agent.relayHandler()}
		before, err := s.api.store.dump()
		if err != nil {
			t.Fatal(err)
		}
		asked := 0
		attack := func(node, who, method, target, body string) {
			r, err := http.NewRequest(method, "http://localhost"+target, strings.NewReader(body))
			if err != nil {
				return // no client can send that
			}
			asked++
			r.RemoteAddr, r.RequestURI = "192.0.2.1:1", target
			r.Header.Set("X-Dkron-Token", tokens[who])
			ctx, leave := context.WithTimeout(t.Context(), time.Second)
			defer leave()
			w := httptest.NewRecorder()
			nodes[node].ServeHTTP(w, r.WithContext(ctx))
			text := w.Body.String()
			open := r.URL.Path == "/health" || w.Header().Get("Content-Security-Policy") != ""
			switch {
			case w.Code >= 500, strings.Contains(text, "hunter2"):
			case (who == "none" || who == "unknown") && w.Code/100 == 2 && !open:
			case who == "team" && w.Code/100 == 2 && strings.Contains(text, `"other"`):
			default:
				return
			}
			t.Errorf("%s %s at the %s as %s with %.100q: %d %.300s", method, target, node, who, body, w.Code, text)
		}
		variants := []func(string) string{
			func(p string) string { return p }, func(p string) string { return p + "/" }, func(p string) string { return "/" + p }, func(p string) string { return p + "?token=x&pretty" },
			func(p string) string { return strings.Replace(p, "/v1/", "/v1/./", 1) }, func(p string) string { return strings.Replace(p, "/v1/", "/v1//", 1) },
			func(p string) string { return "/v1/jobs/team-1/../.." + p }, func(p string) string { return strings.Replace(p, "/other", "/team-1%2F..%2Fother", 1) },
			func(p string) string { return strings.Replace(p, "/other", "/team-1/%2e%2e/other", 1) }, func(p string) string { return strings.Replace(p, "other", "%6fther", 1) },
			func(p string) string { return strings.Replace(p, "other", "OTHER", 1) }, func(p string) string { return strings.Replace(p, "other", "other%00", 1) },
			func(p string) string { return strings.Replace(p, "/v1", "/V1", 1) }, func(p string) string { return p + ";team-1" }, func(p string) string { return "/api" + p }, func(p string) string { return p + "%20" },
		}
		for _, route := range s.api.routes() {
			method, path, _ := strings.Cut(strings.TrimSuffix(route.pattern, "{$}"), " ")
			path = patternName.ReplaceAllString(path, "other")
			for _, variant := range variants {
				for _, node := range sortedKeys(nodes) {
					for _, who := range sortedKeys(tokens) {
						attack(node, who, method, variant(path), `{"name": "other", "schedule": "@manually", "executor": "shell", "executor_config": {"command": "false"}}`)
					}
				}
			}
		}
		seed := mathrand.Uint64()
		t.Logf("seed %d", seed)
		chance := mathrand.New(mathrand.NewPCG(seed, 1))
		docs := []string{`{"name": "other", "Name": "team-1", "schedule": "@manually", "executor": "shell", "executor_config": {"command": "false"}}`,
			`{"name": "team-1", "name": "other", "schedule": "@every 1s", "parent_job": "other"}`, `{"Name": "team", "Policies": ["admin"], "Type": "management"}`, `{"Rules": "{\"path\": {\"/**\": {\"capabilities\": [\"read\"]}}}"}`}
		pieces := []string{`"`, `{`, `}`, `[`, `null`, `\u0000`, `"name": "other",`, `1e999`, "\xff", `\ud800`, strings.Repeat("[", 10_000), "other"}
		for range 1_000 {
			body := docs[chance.IntN(len(docs))]
			for range 1 + chance.IntN(3) {
				at := chance.IntN(len(body) + 1)
				body = body[:at] + pieces[chance.IntN(len(pieces))] + body[min(at+chance.IntN(4), len(body)):]
			}
			target := []string{"POST /v1/jobs", "PATCH /v1/jobs", "PUT /v1/jobs/other", "POST /v1/restore", "POST /v1/acl/tokens", "POST /v1/acl/policies/team", "POST /v1/acl/bootstrap", "POST /v1/jobs?runoncreate"}[chance.IntN(8)]
			method, target, _ := strings.Cut(target, " ")
			attack(sortedKeys(nodes)[chance.IntN(3)], []string{"none", "unknown", "viewer"}[chance.IntN(3)], method, target, body)
		}
		if after, err := s.api.store.dump(); err != nil || after != before {
			t.Errorf("something changed, %v:\n%s\nbefore\n%s", err, after, before)
		}
		t.Logf("%d requests", asked)
	})
}

// TestACL_Refusals: who is refused learns nothing of tokens: garbage, unknown,
// expired and missing are answered alike, at the same price.
func TestACL_Refusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := newTestServer(t, filepath.Join(dir, "data"), 7)
		root := s.guarded(dir)
		short := s.made(root, "/v1/acl/tokens", `{"Name": "short", "Policies": ["viewer"], "ExpirationTTL": "1s"}`)
		deleted := s.made(root, "/v1/acl/tokens", `{"Name": "deleted", "Type": "management"}`)
		s.mustAs(http.StatusOK, short.SecretID, "GET", "/v1/jobs", "")
		s.mustAs(http.StatusOK, root, "DELETE", "/v1/acl/tokens/"+deleted.AccessorID, "")
		wait(2 * time.Second)
		unknown, _ := newSecret()
		for _, secret := range []string{"", "x", unknown, short.SecretID, deleted.SecretID, short.AccessorID, strings.Repeat("a", 100_000), "\x00", root + "=", root[:42] + "!"} {
			w := s.as(secret, "GET", "/v1/jobs", "")
			if w.Code != http.StatusUnauthorized || w.Body.String() != errUnauthenticated.message || w.Header().Get("WWW-Authenticate") == "" {
				t.Errorf("%.60q: %d %s", secret, w.Code, w.Body)
			}
		}
	})
}

// TestACL_BadTokens: however many tokens from an address are not valid, those
// that are stay so, a new one too. All refusals are counted by their reasons,
// and the log has one line about the address in a minute.
func TestACL_BadTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := newTestServer(t, filepath.Join(dir, "data"), 7)
		var log lockedBuffer
		s.api.log = slog.New(slog.NewTextHandler(&log, nil))
		root := s.guarded(dir)
		viewer := s.made(root, "/v1/acl/tokens", `{"Name": "viewer", "Policies": ["viewer"]}`).SecretID
		for range 1_000 {
			secret, _ := newSecret()
			s.mustAs(http.StatusUnauthorized, secret, "GET", "/v1/jobs", "")
			if t.Failed() {
				t.FailNow()
			}
		}
		s.mustAs(http.StatusOK, viewer, "GET", "/v1/jobs", "")
		fresh := s.made(root, "/v1/acl/tokens", `{"Name": "fresh", "Type": "management"}`).SecretID
		s.mustAs(http.StatusOK, fresh, "GET", "/v1/jobs", "")
		s.mustAs(http.StatusUnauthorized, "", "GET", "/v1/jobs", "")
		s.mustAs(http.StatusForbidden, viewer, "POST", "/v1/pause", "")
		s.mustAs(http.StatusForbidden, root, "POST", "/v1/pause", "", "Origin", "https://evil.example")
		r := httptest.NewRequest("GET", "/v1/jobs", nil)
		r.Host = "evil.example"
		s.handler.ServeHTTP(httptest.NewRecorder(), r)
		text := s.mustAs(http.StatusOK, root, "GET", "/metrics", "")
		for _, line := range []string{`{reason="token"} 1001`, `{reason="forbidden"} 1`, `{reason="host"} 1`, `{reason="origin"} 1`} {
			if !strings.Contains(text, "\nbelfry_requests_refused_total"+line+"\n") {
				t.Errorf("no line %s in\n%s", line, text)
			}
		}
		logged := func() int { return strings.Count(log.String(), "a request was refused; more from this address") }
		if logged() != 1 {
			t.Errorf("the log has %d lines about the address, want 1", logged())
		}
		wait(time.Minute)
		s.mustAs(http.StatusUnauthorized, "", "GET", "/v1/jobs", "")
		if logged() != 2 {
			t.Errorf("the log has %d lines a minute later, want 2", logged())
		}
	})
}

// TestRefusals_Bound: refusals of any number of addresses take little memory,
// and few lines of the log.
func TestRefusals_Bound(t *testing.T) {
	var r refusals
	now, told := time.Unix(0, 0), 0
	for i := range 3 * remindersMax {
		if r.add(refusedToken, fmt.Sprint(i), now) {
			told++
		}
	}
	if told != remindersMax || len(r.logged) != remindersMax {
		t.Errorf("%d lines, %d addresses are kept, want %d", told, len(r.logged), remindersMax)
	}
	if !r.add(refusedToken, "new", now.Add(reminderPause)) || len(r.logged) != 1 {
		t.Errorf("a minute later %d addresses are kept, want 1", len(r.logged))
	}
}

// TestACL_Behind: a server that does not know a token waits until it has applied
// what the leader had. Those who wait share one question.
func TestACL_Behind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := newTestServer(t, filepath.Join(dir, "data"), 7)
		s.guarded(dir)
		var asked atomic.Int32
		var made [sha256.Size]byte // the leader has this one
		s.follow(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != "POST" || r.URL.Path != "/applied" || sentSecret(r) != "" {
				t.Errorf("the leader is asked for %s %s", r.Method, r.URL)
			}
			n := asked.Add(1)
			time.Sleep(time.Second)
			res, err := s.propose(t.Context(), &command{PutToken: &tokenPut{Token: token{Accessor: fmt.Sprint(n), Name: "a", Type: tokenManagement, Hash: made[:]}}})
			if err != nil {
				t.Error(err)
			}
			fmt.Fprint(w, res.Index)
		})
		var secret string
		secret, made = newSecret()
		s.mustAs(http.StatusOK, secret, "GET", "/v1/jobs", "")
		s.mustAs(http.StatusOK, secret, "GET", "/v1/jobs", "")
		if n := asked.Swap(0); n != 1 {
			t.Errorf("the leader was asked %d times, want 1", n)
		}
		var all sync.WaitGroup
		began := time.Now()
		for range 1_000 {
			all.Go(func() {
				guess, _ := newSecret()
				s.mustAs(http.StatusUnauthorized, guess, "GET", "/v1/jobs", "")
			})
		}
		time.Sleep(time.Second / 2)
		secret, made = newSecret() // while a question is under way
		s.mustAs(http.StatusOK, secret, "GET", "/v1/jobs", "")
		all.Wait()
		if n, took := asked.Swap(0), time.Since(began); n > 3 || took > 3*time.Second {
			t.Errorf("for 1,000 guesses the leader was asked %d times in %v", n, took)
		}
		s.follow(func(w http.ResponseWriter, _ *http.Request) {
			asked.Add(1)
			s.plane.fail(w, errNotLeader)
		})
		guess, _ := newSecret()
		s.mustAs(http.StatusUnauthorized, guess, "GET", "/v1/jobs", "")
		s.mustAs(http.StatusUnauthorized, "nonsense", "GET", "/v1/jobs", "")
		if n := asked.Load(); n != 1 {
			t.Errorf("nobody leads, and was asked %d times about what may be a token, want 1", n)
		}
	})
}

// TestACL_Bootstrap: the secret of the data directory makes one token, once.
func TestACL_Bootstrap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := newTestServer(t, filepath.Join(dir, "data"), 7)
		s.mustAs(http.StatusConflict, "", "POST", "/v1/acl/bootstrap", `{"Secret": ""}`) // off
		root := s.guarded(dir)
		if _, err := os.Stat(filepath.Join(dir, bootstrapFile)); !os.IsNotExist(err) {
			t.Errorf("the secret that was used is still there, %v", err)
		}
		s.mustAs(http.StatusForbidden, "", "POST", "/v1/acl/bootstrap", `{"Secret": ""}`)
		s.mustAs(http.StatusBadRequest, "", "POST", "/v1/acl/bootstrap", `nothing`)
		if err := writeBootstrapSecret(dir); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(dir, bootstrapFile))
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(filepath.Join(dir, bootstrapFile)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v, want 0600", info.Mode(), err)
		}
		s.mustAs(http.StatusConflict, "", "POST", "/v1/acl/bootstrap", `{"Secret": "`+strings.TrimSpace(string(text))+`"}`)
		list := s.mustAs(http.StatusOK, root, "GET", "/v1/acl/tokens", "")
		if strings.Contains(list, root) || strings.Contains(list, "Secret") || strings.Contains(list, "Hash") || strings.Count(list, "AccessorID") != 1 {
			t.Errorf("the tokens are %s", list)
		}
		for _, body := range []string{
			`{"Name": ""}`, `{"Name": "a"}`, `{"Name": "a", "Policies": ["nosuch"]}`, `{"Name": "a", "Type": "god"}`, `{"Name": "a", "Type": "management", "Policies": ["viewer"]}`,
			`{"Name": "a", "Policies": ["viewer"], "ExpirationTTL": "-1s"}`, `{"Name": "a", "Policies": ["viewer"], "ExpirationTTL": "soon"}`, `{"Name": "a", "Policies": ["viewer"], "Hash": "eA=="}`, `[]`, ``,
		} {
			s.mustAs(http.StatusBadRequest, root, "POST", "/v1/acl/tokens", body)
		}
		s.mustAs(http.StatusNotFound, root, "GET", "/v1/acl/tokens/nosuch", "")
		s.mustAs(http.StatusNotFound, root, "DELETE", "/v1/acl/tokens/nosuch", "")
		once := []string{"Idempotency-Key", "k"}
		s.mustAs(http.StatusCreated, root, "POST", "/v1/acl/tokens", `{"Name": "a", "Policies": ["viewer"]}`, once...)
		s.mustAs(http.StatusConflict, root, "POST", "/v1/acl/tokens", `{"Name": "a", "Policies": ["viewer"]}`, once...)
	})
}

// TestACL_Jobs: a token for some jobs sees, counts, stores and runs only those,
// and no secret of a job that it cannot store.
func TestACL_Jobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := newTestServer(t, filepath.Join(dir, "data"), 7)
		root := s.guarded(dir)
		jobDoc := func(name string) string {
			return `{"name": "` + name + `", "schedule": "@manually", "executor": "shell", "executor_config": {"command": "true", "env": "PASSWORD=hunter2", "payload": "aHVudGVyMg=="}}`
		}
		for _, name := range []string{"team-a-1", "team-a-2", "team-b-1"} {
			s.mustAs(http.StatusCreated, root, "POST", "/v1/jobs", jobDoc(name))
			s.mustAs(http.StatusAccepted, root, "POST", "/v1/jobs/"+name, "")
		}
		s.mustAs(http.StatusAccepted, root, "POST", "/v1/acl/policies/team-a", `{"Rules": "{\"path\": {\"/v1/jobs/team-a-**\": {\"capabilities\": [\"read\", \"list\"]}, \"/v1/jobs/team-a-*\": {\"capabilities\": [\"create\", \"update\"]}, \"/v1/jobs/seen-*\": {\"capabilities\": [\"read\"]}, \"/v1/busy\": {\"capabilities\": [\"list\"]}}}"}`)
		team := s.made(root, "/v1/acl/tokens", `{"Name": "team-a", "Policies": ["team-a"]}`).SecretID
		viewer := s.made(root, "/v1/acl/tokens", `{"Name": "viewer", "Policies": ["viewer"]}`).SecretID
		operator := s.made(root, "/v1/acl/tokens", `{"Name": "operator", "Policies": ["operator"]}`).SecretID
		for _, c := range []struct {
			who, secret, target, total string
		}{
			{"root", root, "/v1/jobs", "3"},
			{"viewer", viewer, "/v1/jobs", "3"},
			{"team", team, "/v1/jobs", "2"},
			{"team", team, "/v1/jobs?_start=0&_end=1", "2"},
			{"team", team, "/v1/jobs?q=team-b", "0"},
			{"root", root, "/v1/busy", "3"},
			{"team", team, "/v1/busy", "2"},
		} {
			w := s.as(c.secret, "GET", c.target, "")
			if got := w.Header().Get("X-Total-Count"); got != c.total {
				t.Errorf("%s as %s: X-Total-Count %s, want %s", c.target, c.who, got, c.total)
			}
			if c.who == "team" && strings.Contains(w.Body.String(), "team-b") {
				t.Errorf("%s as team shows %s", c.target, w.Body)
			}
		}

		var ended map[string][]any
		text := s.mustAs(http.StatusOK, team, "GET", "/v1/outcomes?job=team-a-1&job=team-b-1&job=..%2Fteam-a-1", "")
		if err := json.Unmarshal([]byte(text), &ended); err != nil || len(ended) != 1 || len(ended["team-a-1"]) != 1 {
			t.Errorf("outcomes as team: %s, %v", text, err)
		}

		// An execution that is found by its id is as visible as under its job.
		for _, job := range []string{"team-a-1", "team-b-1"} {
			var list []executionView
			text := s.mustAs(http.StatusOK, root, "GET", "/v1/jobs/"+job+"/executions", "")
			if err := json.Unmarshal([]byte(text), &list); err != nil || len(list) != 1 {
				t.Fatalf("executions of %s: %s, %v", job, text, err)
			}
			want := map[string]int{"team-a-1": http.StatusOK, "team-b-1": http.StatusNotFound}[job]
			s.mustAs(want, team, "GET", "/v1/executions/"+list[0].ID, "")
			s.mustAs(http.StatusOK, viewer, "GET", "/v1/executions/"+list[0].ID, "")
		}
		s.mustAs(http.StatusNotFound, root, "GET", "/v1/executions/1-node1", "")

		// A restore that deletes needs the right to delete, too.
		s.mustAs(http.StatusAccepted, root, "POST", "/v1/acl/policies/restorer", `{"Rules": "{\"path\": {\"/v1/restore\": {\"capabilities\": [\"create\"]}}}"}`)
		restorer := s.made(root, "/v1/acl/tokens", `{"Name": "restorer", "Policies": ["restorer"]}`).SecretID
		s.mustAs(http.StatusForbidden, restorer, "POST", "/v1/restore?prune&metadata[team]=a", "[]")

		// Many rules are no more trouble than one.
		many := []string{}
		for i := range 1200 {
			many = append(many, fmt.Sprintf(`\"/v1/jobs/x%d*\": {\"capabilities\": [\"read\"]}`, i))
		}
		s.mustAs(http.StatusAccepted, root, "POST", "/v1/acl/policies/many", `{"Rules": "{\"path\": {\"/v1/jobs/team-b-*\": {\"capabilities\": [\"read\"]}, `+strings.Join(many, ", ")+`}}"}`)
		if text := s.mustAs(http.StatusOK, s.made(root, "/v1/acl/tokens", `{"Name": "many", "Policies": ["many"]}`).SecretID, "GET", "/v1/jobs", ""); strings.Count(text, `"id"`) != 1 {
			t.Errorf("with many rules: %s", text)
		}

		for _, path := range []string{"t%65am-*", "%5Bt%5D*", "%2A"} {
			s.mustAs(http.StatusBadRequest, root, "POST", "/v1/acl/policies/escaped", `{"Rules": "{\"path\": {\"/v1/jobs/`+path+`\": {\"capabilities\": [\"read\"]}}}"}`)
		}
		// A name is escaped in a policy, in one way, wherever it is asked for.
		s.mustAs(http.StatusAccepted, root, "POST", "/v1/acl/policies/escaped", `{"Rules": "{\"path\": {\"/v1/jobs/m%C3%BC*\": {\"capabilities\": [\"read\", \"list\", \"update\"]}, \"/v1/jobs/m%C3%BC*/executions\": {\"capabilities\": [\"list\"]}, \"/v1/busy\": {\"capabilities\": [\"list\"]}}}"}`)
		escaped := s.made(root, "/v1/acl/tokens", `{"Name": "escaped", "Policies": ["escaped"]}`).SecretID
		s.mustAs(http.StatusCreated, escaped, "POST", "/v1/jobs", jobDoc("müller"))
		s.mustAs(http.StatusAccepted, root, "POST", "/v1/jobs/müller", "")
		for _, target := range []string{"/v1/jobs", "/v1/busy", "/v1/jobs/m%C3%BCller"} {
			if text := s.mustAs(http.StatusOK, escaped, "GET", target, ""); !strings.Contains(text, "müller") || strings.Contains(text, "team") || strings.Contains(text, hiddenValue) {
				t.Errorf("%s shows %s", target, text)
			}
		}
		s.mustAs(http.StatusForbidden, escaped, "GET", "/v1/jobs/team-a-1", "")
		s.mustAs(http.StatusOK, root, "DELETE", "/v1/jobs/müller", "")

		// What looks secret is for those who could change it.
		for i, c := range []struct {
			who, secret, method, target string
			status                      int
			sees                        bool
		}{
			{"viewer", viewer, "GET", "/v1/jobs", 200, false},
			{"viewer", viewer, "GET", "/v1/jobs/team-a-1", 200, false},
			{"operator", operator, "GET", "/v1/jobs/team-a-1", 200, false},
			{"operator", operator, "POST", "/v1/jobs/team-a-1/toggle", 200, false},
			{"operator", operator, "POST", "/v1/jobs/team-a-1/toggle", 200, false},
			{"operator", operator, "POST", "/v1/jobs/team-a-1", 202, false},
			{"operator", operator, "POST", "/v1/jobs/team-a-1/run", 202, false},
			{"team", team, "GET", "/v1/jobs", 200, true},
			{"team", team, "GET", "/v1/jobs/team-a-1", 200, true},
			{"root", root, "GET", "/v1/jobs/team-b-1", 200, true},
		} {
			text := s.mustAs(c.status, c.secret, c.method, c.target, "", "Idempotency-Key", fmt.Sprint(c.who, i))
			if sees := strings.Contains(text, "hunter2") && strings.Contains(text, "aHVu"); sees != c.sees || strings.Contains(text, hiddenValue) == c.sees {
				t.Errorf("%s %s as %s sees secrets %t, want %t: %s", c.method, c.target, c.who, sees, c.sees, text)
			}
		}

		// What a viewer was shown does not take the place of the secrets.
		export := s.mustAs(http.StatusOK, viewer, "GET", "/v1/jobs", "")
		form := "--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n" + export + "\r\n--XX--\r\n"
		for _, text := range []string{
			s.mustAs(http.StatusBadRequest, root, "POST", "/v1/restore", form, "Content-Type", "multipart/form-data; boundary=XX"),
			s.mustAs(http.StatusBadRequest, root, "POST", "/v1/jobs", s.mustAs(http.StatusOK, viewer, "GET", "/v1/jobs/team-a-1", "")),
			s.mustAs(http.StatusBadRequest, root, "PUT", "/v1/jobs/team-a-1", s.mustAs(http.StatusOK, viewer, "GET", "/v1/jobs/team-a-1", "")),
			s.mustAs(http.StatusBadRequest, root, "POST", "/v1/jobs", `{"name": "team-a-1", "schedule": "@manually", "executor": "http", "executor_config": {"url": "<hidden>"}}`),
		} {
			if !strings.Contains(text, `: "<hidden>" stands for a hidden value; send the value itself`) {
				t.Errorf("what a viewer was shown is answered: %s", text)
			}
		}
		if text := s.mustAs(http.StatusOK, root, "GET", "/v1/jobs/team-a-1", ""); !strings.Contains(text, "hunter2") {
			t.Errorf("the secret is gone: %s", text)
		}

		for _, c := range []struct {
			secret, method, target, body string
			status                       int
		}{
			{team, "POST", "/v1/jobs", jobDoc("team-a-3"), 201},
			{team, "PUT", "/v1/jobs/team-a-3", jobDoc("team-a-3"), 201},
			{team, "PATCH", "/v1/jobs?runoncreate", jobDoc("team-a-3"), 201},
			{team, "POST", "/v1/jobs", jobDoc("team-b-1"), 403},
			{team, "PUT", "/v1/jobs/team-a-3", jobDoc("team-b-1"), 403},
			{team, "POST", "/v1/jobs", `{"name": "team-a-3", "Name": "team-b-1", "schedule": "@manually", "executor": "shell"}`, 403},
			{team, "POST", "/v1/jobs", `{"name": "team-a-4", "parent_job": "team-b-1", "executor": "shell"}`, 403},
			{team, "POST", "/v1/jobs", `{"name": "team-a-4", "parent_job": "seen-1", "executor": "shell"}`, 403}, // to read it is not enough
			{team, "POST", "/v1/jobs", `{"name": "team-a-4", "parent_job": "team-a-1", "executor": "shell"}`, 201},
			{team, "POST", "/v1/jobs", `nothing`, 400},
			{team, "GET", "/v1/jobs/team-b-1", "", 403},
			{team, "GET", "/v1/jobs/nosuch", "", 403},
			{team, "GET", "/v1/jobs/team-a-9", "", 404},
			{team, "POST", "/v1/jobs/team-a-3", "", 202},
			{team, "POST", "/v1/jobs/team-b-1", "", 403},
			{team, "DELETE", "/v1/jobs/team-a-3", "", 403},
			{viewer, "POST", "/v1/jobs/team-a-1", "", 403},
			{viewer, "POST", "/v1/jobs", jobDoc("x"), 403},
			{operator, "POST", "/v1/jobs", jobDoc("x"), 403},
			{team, "GET", "/v1/acl/self", "", 200},
			{team, "GET", "/v1/acl/self?path=/v1/jobs/team-a-1&capability=create", "", 200},
			{team, "GET", "/v1/acl/self?path=/v1/leave&capability=create", "", 403},
			{"", "GET", "/health", "", 200},
			{root, "GET", "/v1/jobs?_sort=executor_config", "", 200},
			{team, "GET", "/v1/jobs?_sort=executor_config", "", 403}, // it could compare with what it stores itself
			{viewer, "GET", "/v1/jobs?_sort=executor_config", "", 403},
		} {
			s.mustAs(c.status, c.secret, c.method, c.target, c.body)
		}
		if text := s.mustAs(200, team, "GET", "/v1/acl/self", ""); !strings.Contains(text, `"Rules":[{"path":{`) || !strings.Contains(text, `"/v1/jobs/team-a-*":{"capabilities":["create","update"]}`) {
			t.Errorf("the team's token does not say what it grants: %s", text)
		}
	})
}

// TestACL_Lists: a list over all jobs that ends somewhere ends behind rows that
// the token may see: who may see few misses none of them.
func TestACL_Lists(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := newTestServer(t, filepath.Join(dir, "data"), 7)
		root := s.guarded(dir)
		job := func(name, schedule string) {
			s.mustAs(http.StatusCreated, root, "POST", "/v1/jobs", `{"name": "`+name+`", "schedule": "`+schedule+`", "concurrency": "forbid", "executor": "shell", "executor_config": {"command": "true"}}`)
		}
		job("team-1", "@every 5m")
		s.mustAs(http.StatusAccepted, root, "POST", "/v1/jobs/team-1", "")
		wait(5*time.Minute + time.Second) // its tick is skipped
		job("other-1", "@every 1s")
		wait(10 * time.Second)
		for range 6 {
			s.finish(outcomeFailed)
			wait(2 * time.Second)
		}
		s.mustAs(http.StatusAccepted, root, "POST", "/v1/acl/policies/team", `{"Rules": "{\"path\": {\"/v1/jobs/team-*/executions\": {\"capabilities\": [\"list\"]}, \"/v1/jobs/team-*/ticks\": {\"capabilities\": [\"list\"]}, \"/v1/jobs/team-*\": {\"capabilities\": [\"read\"]}, \"/v1/*\": {\"capabilities\": [\"read\", \"list\"]}}}"}`)
		team := s.made(root, "/v1/acl/tokens", `{"Name": "team", "Policies": ["team"]}`).SecretID
		for _, path := range []string{"/v1/executions?limit=1", "/v1/executions?limit=1&outcome=failed", "/v1/executions?limit=1&outcome=bad", "/v1/upcoming?limit=1", "/v1/summary"} {
			text := s.mustAs(http.StatusOK, team, "GET", path, "")
			if strings.Contains(text, "other-1") || !strings.Contains(text, "team-1") {
				t.Errorf("%s as team: %s", path, text)
			}
			if text := s.mustAs(http.StatusOK, root, "GET", path, ""); !strings.Contains(text, "other-1") && !strings.Contains(path, "upcoming") && !strings.Contains(path, "=failed") && !strings.Contains(path, "=bad") {
				t.Errorf("%s as root: %s", path, text)
			}
		}
	})
}

// TestJobGlob: a pattern of names means those whose paths the policy means.
func TestJobGlob(t *testing.T) {
	seed := mathrand.Uint64()
	t.Logf("seed %d", seed)
	chance := mathrand.New(mathrand.NewPCG(seed, 1))
	pick := func(words ...string) string { return words[chance.IntN(len(words))] }
	for range 20_000 {
		glob := pick("/v1", "/*", "/v**", "/v2") + pick("/jobs", "/j*", "/j**", "/job", "") + pick("/a", "/a*", "/*b", "/a*b", "/a**", "/**", "/", "") + pick("", "", "/ticks", "/t*", "/**", "/*", "/t**", "/", "/ticks/x")
		if checkGlob(glob) != nil {
			continue
		}
		for _, below := range []string{"", "ticks", "executions"} {
			pattern, ok := jobGlob(glob, below)
			for _, name := range []string{"a", "b", "ab", "axb", "ba", "t"} {
				want := matchPath(glob, strings.TrimSuffix(jobPath(name)+"/"+below, "/"))
				if got := ok && matchSegment(pattern, name); got != want {
					t.Fatalf("%s below %q: the pattern %q, %t means %s: %t, want %t", glob, below, pattern, ok, name, got, want)
				}
			}
		}
	}
}

// TestACL_Follow: an output that is followed ends within 5 s of its token.
func TestACL_Follow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := newTestServer(t, filepath.Join(dir, "data"), 7)
		root := s.guarded(dir)
		s.mustAs(http.StatusCreated, root, "POST", "/v1/jobs", `{"name": "a", "schedule": "@manually"}`)
		group := s.as(root, "POST", "/v1/jobs/a", "").Header().Get("Belfry-Group")
		viewer := s.made(root, "/v1/acl/tokens", `{"Name": "viewer", "Policies": ["viewer"]}`)
		done := make(chan any)
		follow := func(secret string) {
			defer func() { done <- recover() }()
			s.as(secret, "GET", "/v1/jobs/a/executions/"+group+"-node1/output?follow", "")
		}
		go follow(viewer.SecretID)
		s.node.print("one")
		wait(time.Hour)
		select {
		case <-done:
			t.Fatal("it ended while its token was good")
		default:
		}
		s.mustAs(http.StatusOK, root, "DELETE", "/v1/acl/tokens/"+viewer.AccessorID, "")
		wait(5 * time.Second)
		select {
		case got := <-done:
			if got != http.ErrAbortHandler {
				t.Errorf("it ended with %v, as if that were the whole", got)
			}
		default:
			t.Error("it goes on 5 s after its token was deleted")
			s.finish(outcomeSuccess)
			<-done
		}
	})
}

// TestACL_Health: what is wrong but lets the node read and write is no 503. Who
// has no token, or calls the server by a name that is not its own, as a load
// balancer does, learns whether something is wrong, not what.
func TestACL_Health(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := newTestServer(t, filepath.Join(dir, "data"), 7)
		root := s.guarded(dir)
		ask := func(secret, host, target string, status int, want string) {
			t.Helper()
			r := httptest.NewRequest("GET", target, nil)
			r.Host = host
			r.Header.Set("X-Dkron-Token", secret)
			w := httptest.NewRecorder()
			s.handler.ServeHTTP(w, r)
			if w.Code != status || w.Body.String() != want {
				t.Errorf("%s of %s with the token %.3q: %d %s, want %d %s", target, host, secret, w.Code, w.Body, status, want)
			}
			if host != "localhost" && w.Header()["X-Whom"] != nil {
				t.Errorf("%s is told the node's name", host)
			}
		}
		ask(root, "localhost", "/health", 200, `{"status":"healthy"}`)
		s.plane.setProblem("clock", "the clock is wrong")
		ask(root, "localhost", "/health", 200, `{"status":"healthy","warnings":["the clock is wrong"]}`)
		ask("", "localhost", "/health", 200, `{"status":"healthy"}`)
		ask(root, "belfry.svc:8080", "/health", 200, `{"status":"healthy"}`)
		s.plane.server.progress.Store(&progress{round: time.Now().Add(-time.Hour)})
		ask(root, "localhost", "/health", 503, `{"problems":["`+s.plane.server.progress.Load().problem(time.Now())+`"],"status":"unhealthy","warnings":["the clock is wrong"]}`)
		ask("", "localhost", "/health", 503, `{"status":"unhealthy"}`)
		ask(root, "belfry.svc:8080", "/health", 503, `{"status":"unhealthy"}`)
		ask("", "belfry.svc", "/health?live", 200, `{"status":"alive"}`)
		ask("", "belfry.svc", "/health?leader", 200, `{"status":"leader"}`)
		s.follow(nil)
		ask("", "belfry.svc", "/health?leader", 503, `{"status":"follower"}`)
	})
}

// TestACL_Forwarded: what another node passes on is looked at again, so one
// whose access control is off opens no door; and a write has the accessor of its
// token for an actor.
func TestACL_Forwarded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := newTestServer(t, filepath.Join(dir, "data"), 7)
		root := s.guarded(dir)
		for _, c := range []struct {
			secret string
			status int
		}{{"", 401}, {"nonsense", 401}, {root, 200}} {
			r := httptest.NewRequest("POST", "/v1/pause", nil)
			r.Host = "localhost"
			r.Header.Set("X-Dkron-Token", c.secret)
			r = r.WithContext(context.WithValue(r.Context(), forwardedKey{}, forwarded{Actor: actorAnonymous, Request: "r" + c.secret}))
			w := httptest.NewRecorder()
			s.handler.ServeHTTP(w, r)
			if w.Code != c.status {
				t.Errorf("token %q: %d %s, want %d", c.secret, w.Code, w.Body, c.status)
			}
		}
		// Rights that the body needs are looked at here again, too; the route's, before the body is read.
		s.mustAs(http.StatusOK, root, "POST", "/v1/unpause", "")
		s.mustAs(http.StatusAccepted, root, "POST", "/v1/acl/policies/team", `{"Rules": "{\"path\": {\"/v1/jobs/team-*\": {\"capabilities\": [\"update\"]}}}"}`)
		team := s.made(root, "/v1/acl/tokens", `{"Name": "team", "Policies": ["team"]}`).SecretID
		viewer := s.made(root, "/v1/acl/tokens", `{"Name": "viewer", "Policies": ["viewer"]}`).SecretID
		for _, c := range []struct {
			secret, job string
			status      int
			read        bool
		}{{team, "team-a", 201, true}, {team, "other", 403, true}, {viewer, "team-a", 403, false}} {
			sent := strings.NewReader(`{"name": "` + c.job + `", "schedule": "@manually"}`)
			r := httptest.NewRequest("POST", "/v1/jobs", sent)
			r.Host = "localhost"
			r.Header.Set("X-Dkron-Token", c.secret)
			r = r.WithContext(context.WithValue(r.Context(), forwardedKey{}, forwarded{Actor: actorAnonymous, Request: "job " + c.secret + c.job}))
			w := httptest.NewRecorder()
			if s.handler.ServeHTTP(w, r); w.Code != c.status || (sent.Len() == 0) != c.read {
				t.Errorf("a forwarded %s: %d %s, %d bytes are not read; want %d, read %t", c.job, w.Code, w.Body, sent.Len(), c.status, c.read)
			}
		}
		var actor string
		s.follow(func(_ http.ResponseWriter, r *http.Request) { actor = r.Header.Get(headerActor) })
		s.mustAs(http.StatusOK, root, "POST", "/v1/unpause", "")
		var self tokenView
		if err := json.Unmarshal([]byte(s.mustAs(http.StatusOK, root, "GET", "/v1/acl/self", "")), &self); err != nil || self.AccessorID == "" || actor != self.AccessorID {
			t.Errorf("the actor is %q, want the accessor %q, %v", actor, self.AccessorID, err)
		}
		actor = ""
		s.mustAs(http.StatusUnauthorized, "", "POST", "/v1/unpause", "")
		if actor != "" {
			t.Errorf("a write without a token was passed on, as %s", actor)
		}
	})
}

// changes returns what the audit trail says, newest first.
func (s *testServer) changes(secret, query string) (list []auditView) {
	s.t.Helper()
	if err := json.Unmarshal([]byte(s.mustAs(http.StatusOK, secret, "GET", "/v1/audit"+query, "")), &list); err != nil {
		s.t.Fatal(err)
	}
	return list
}

// TestAudit_Actors: a row has the accessor and the name of the token that asked,
// what was refused or repeated is no row, and no secret is in any of them.
func TestAudit_Actors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := newTestServer(t, filepath.Join(dir, "data"), 7)
		root := s.guarded(dir)
		operator := s.made(root, "/v1/acl/tokens", `{"Name": "night shift", "Policies": ["operator"]}`)
		boss := s.made(root, "/v1/acl/tokens", `{"Name": "boss", "Type": "management"}`)
		const doc = `{"name": "a", "schedule": "@manually", "executor": "shell", "executor_config": {"command": "true", "env": "PASSWORD=hunter2", "Api-Key": "hunter2"}}`
		for range 2 {
			s.mustAs(http.StatusCreated, boss.SecretID, "POST", "/v1/jobs", doc, "Idempotency-Key", "once")
		}
		s.mustAs(http.StatusCreated, boss.SecretID, "POST", "/v1/jobs", strings.Replace(doc, "hunter2", "hunter2 again", 1))
		s.mustAs(http.StatusAccepted, operator.SecretID, "POST", "/v1/jobs/a", "")
		s.mustAs(http.StatusForbidden, operator.SecretID, "DELETE", "/v1/jobs/a", "")
		s.mustAs(http.StatusUnauthorized, "", "DELETE", "/v1/jobs/a", "")
		s.mustAs(http.StatusBadRequest, boss.SecretID, "POST", "/v1/jobs", `{"name": "b"}`)
		s.mustAs(http.StatusNotFound, boss.SecretID, "POST", "/v1/jobs/b/toggle", "")
		s.mustAs(http.StatusConflict, boss.SecretID, "DELETE", "/v1/acl/policies/admin", "")
		s.mustAs(http.StatusOK, boss.SecretID, "DELETE", "/v1/acl/tokens/"+boss.AccessorID, "")
		s.mustAs(http.StatusForbidden, operator.SecretID, "GET", "/v1/audit", "")
		rows := s.changes(root, "")
		var got []string
		for _, r := range rows {
			got = append(got, fmt.Sprintf("%s %s %q", r.Action, map[string]string{boss.AccessorID: "boss", operator.AccessorID: "operator", rows[4].Actor: "root"}[r.Actor], r.ActorName))
		}
		want := []string{
			`token.delete boss "boss"`, `job.run operator "night shift"`, `job.put boss "boss"`, `job.put boss "boss"`,
			`token.create root "bootstrap"`, `token.create root "bootstrap"`, `acl.bootstrap  ""`,
		}
		if !slices.Equal(got, want) || rows[6].Actor != actorBootstrap {
			t.Errorf("the trail is %q, want %q", got, want)
		}
		if rows := s.changes(root, "?actor="+operator.AccessorID); len(rows) != 1 || rows[0].JobName != "a" || rows[0].Address != "192.0.2.1" {
			t.Errorf("the operator has done %+v", rows)
		}
		text := fmt.Sprint(s.mustAs(http.StatusOK, root, "GET", "/v1/audit", ""))
		err := s.api.store.viewEach("SELECT json_array(id, at, actor, name, address, action, job, object, before, after) FROM audit", nil, func(scan scanner) error {
			var row string
			err := scan(&row)
			text += row
			return err
		})
		for _, secret := range []string{"hunter2", root, boss.SecretID, operator.SecretID, "hash", "Hash"} {
			if err != nil || strings.Contains(text, secret) {
				t.Errorf("the audit trail has a secret, %q: %s, %v", secret, text, err)
			}
		}
		s.stop()
		s = newTestServer(t, filepath.Join(dir, "data"), 8)
		if after := s.changes("", ""); !slices.EqualFunc(rows, after, func(a, b auditView) bool { return fmt.Sprint(a) == fmt.Sprint(b) }) {
			t.Errorf("after a restart the trail is %v, and was %v", after, rows)
		}
	})
}

// TestAudit_Kept: rows go when they are older than they must be, also those that
// a clock ahead of its time has dated, and however many there are.
func TestAudit_Kept(t *testing.T) {
	s := newStore(t)
	var commands []*command
	for i := range 2*sliceRows + 10 {
		at := testStart
		if i == 0 {
			at += nanosPerDay
		}
		commands = append(commands, &command{Actor: actorAnonymous, Now: at, Audit: &audited{Action: actionPause}})
	}
	commands = append(commands, &command{Actor: actorAnonymous, Now: testStart + 1, Audit: &audited{Action: actionUnpause}})
	commit(t, s, commands...)
	for _, want := range []int{sliceRows + 11, 11, 1, 1} {
		tr, err := s.trimmable(retention{executions: 1, audit: testStart + 1, auditBytes: math.MaxInt64}, true)
		if err != nil {
			t.Fatal(err)
		}
		commit(t, s, &command{Trim: &tr})
		rows, total, _, err := listAudit(s, auditFilter{To: math.MaxInt64}, 0, 10)
		if err != nil || total != want || rows[0].Action != actionUnpause {
			t.Fatalf("%d rows are left, %v, want %d", total, err, want)
		}
	}
}

// TestAudit_KeptBytes: a trail that is too large loses its oldest rows, and says
// so in a row of its own.
func TestAudit_KeptBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, t.TempDir(), 1)
		s.api.scheduler.cfg.AuditKeptBytes = 1_000_000
		for i := range 150 {
			wait(time.Millisecond)
			if w := s.do("POST", "/v1/jobs", fmt.Sprintf(`{"name":"job-%d","schedule":"@manually","displayname":%q}`, i, strings.Repeat("x", 9_000))); w.Code != http.StatusCreated {
				t.Fatal(w.Code, w.Body)
			}
		}
		for range 2 { // the second finds nothing to do
			if err := s.api.scheduler.trim(t.Context(), 0, time.Now(), false); err != nil {
				t.Fatal(err)
			}
		}
		rows, total, _, err := listAudit(s.api.store, auditFilter{To: math.MaxInt64}, 0, 1000)
		if err != nil || total < 90 || total > 111 {
			t.Fatalf("%d rows are left, %v, want about 1 MB of them", total, err)
		}
		if first, last := rows[0], rows[1]; first.Action != actionTrimAudit || first.Actor != actorScheduler || !strings.Contains(first.Object, timeOf(rows[total-1].At-int64(time.Millisecond)).Format(time.RFC3339Nano)) || last.Job != "job-149" {
			t.Errorf("the newest rows are %+v and of %q, want what went, and the last job", first, last.Job)
		}
	})
}

// TestAudit_Window: a search looks at so many rows and no more, and says where
// to go on.
func TestAudit_Window(t *testing.T) {
	s := newStore(t)
	err := s.update("NORMAL", func() error {
		return s.exec(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) INSERT INTO audit SELECT i, i * 1000000000, i * 200, 'anonymous', '', '', 'job.put', iif(i % 1000, 'a', 'b'), '', 'null', 'null' FROM n`, 2*auditScanMax+10)
	})
	if err != nil {
		t.Fatal(err)
	}
	sum, searches := 0, 0
	for f := (auditFilter{To: math.MaxInt64}); f.To != 0; searches++ {
		rows, total, older, err := listAudit(s, f, 0, 2)
		if err != nil || total > auditScanMax || len(rows) != 2 || older >= f.To {
			t.Fatalf("before %d: %d of %d rows, more before %d, %v", f.To, len(rows), total, older, err)
		}
		sum, f.To = sum+total, older
	}
	if sum != 2*auditScanMax+10 || searches != 3 {
		t.Errorf("%d searches find %d rows, want 3 and %d", searches, sum, 2*auditScanMax+10)
	}
	rows, total, older, err := listAudit(s, auditFilter{To: math.MaxInt64, Job: "b"}, 0, 1000)
	if err != nil || total != 2*auditScanMax/1000 || len(rows) != total || older != 0 {
		t.Errorf("of one job: %d of %d rows, more before %d, %v", len(rows), total, older, err)
	}
}

// ---- Real nodes

// TestACL_Nodes does what the README says, as a new user does it, and asks a
// leader, a follower and an agent: all three refuse and allow the same.
func TestACL_Nodes(t *testing.T) {
	bind, key := freeAddr(t), sharedKey(t)
	node := func(name string, args ...string) *process {
		args = append([]string{"agent", key, "--acl", "--node-name=" + name, "--http-addr=127.0.0.1:0", "--data-dir=data"}, args...)
		return launch(t, program(t, t.TempDir(), nil, args...))
	}
	first := node("n1", "--server", "--bootstrap-expect=1", "--bind-addr="+bind)
	nodes := []*process{first, node("n2", "--server", "--bind-addr=127.0.0.1:0", "--retry-join="+bind), node("n3", "--bind-addr=127.0.0.1:0", "--retry-join="+bind)}
	cli := func(p *process, secret string, args ...string) (string, error) {
		args = append(args, "--http-addr="+strings.TrimPrefix(p.url, "http://"))
		out, err := program(t, first.cmd.Dir, []string{"BELFRY_TOKEN=" + secret}, args...).CombinedOutput()
		return string(out), err
	}
	secretOf := func(doc string) string {
		var v tokenView
		if err := json.Unmarshal([]byte(doc), &v); err != nil || v.SecretID == "" {
			t.Fatalf("no token in %s, %v", doc, err)
		}
		return v.SecretID
	}
	var made string
	first.eventually("first token", func() (ok bool) {
		out, err := cli(first, "", "acl", "bootstrap", "--data-dir=data")
		made = out
		return err == nil
	})
	root := secretOf(made)
	ask := func(p *process, method, path, secret, body string) (int, string) {
		t.Helper()
		r, err := http.NewRequest(method, p.url+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if secret != "" {
			r.Header.Set("Authorization", "Bearer "+secret)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		if h := resp.Header; len(h["X-Whom"]) != 1 || len(h["X-Content-Type-Options"]) != 1 {
			t.Errorf("%s %s: headers %v", method, path, h)
		}
		return resp.StatusCode, string(text)
	}
	status := func(p *process, method, path, secret, body string) int {
		code, _ := ask(p, method, path, secret, body)
		return code
	}
	for _, p := range nodes {
		p.eventually("data directory without a secret", func() bool {
			_, err := os.Stat(filepath.Join(p.cmd.Dir, "data", bootstrapFile))
			return errors.Is(err, fs.ErrNotExist)
		})
		p.eventually("a node that knows the token", func() bool { return status(p, "GET", "/v1/members", root, "") == http.StatusOK })
	}
	out, err := cli(nodes[2], root, "acl", "token", "create", "--name=wall", "--policy=viewer")
	if err != nil {
		t.Fatalf("acl token create: %s", out)
	}
	viewer := secretOf(out)
	const doc = `{"name": "hello", "schedule": "@manually", "executor": "shell", "executor_config": {"command": "true"}}`
	for _, p := range nodes {
		if got := status(p, "GET", "/v1/jobs", viewer, ""); got != http.StatusOK {
			t.Errorf("the new viewer is answered %d\n%s", got, p.log.String())
		}
		for _, c := range []struct {
			method, path, secret, body string
			want                       int
		}{
			{"POST", "/v1/jobs", root, doc, http.StatusCreated},
			{"POST", "/v1/jobs/hello", viewer, "", http.StatusForbidden},
			{"POST", "/v1/jobs", viewer, doc, http.StatusForbidden},
			{"POST", "/v1/leave", viewer, "", http.StatusForbidden},
			{"POST", "/v1/leave", "nonsense", "", http.StatusUnauthorized},
			{"POST", "/v1/jobs/hello", "nonsense", "", http.StatusUnauthorized},
			{"POST", "/v1/jobs/hello", root, "", http.StatusAccepted},
			{"GET", "/v1/backup", viewer, "", http.StatusForbidden},
		} {
			if got := status(p, c.method, c.path, c.secret, c.body); got != c.want {
				t.Errorf("%s %s: %d, want %d\n%s", c.method, c.path, got, c.want, p.log.String())
			}
		}
	}
	if out, err := cli(nodes[1], viewer, "acl", "policy", "list"); err == nil || !strings.Contains(out, "403") {
		t.Errorf("acl policy list as viewer: %s, %v", out, err)
	}
	if out, err := cli(nodes[2], root, "leave"); err != nil {
		t.Errorf("leave: %s, %v", out, err)
	}
	nodes[2].ended()
	// Wherever something was asked for, all servers say who did, and from where.
	trail := func(p *process) string {
		code, text := ask(p, "GET", "/v1/audit", root, "")
		if code != http.StatusOK {
			t.Fatalf("GET /v1/audit: %d %s", code, text)
		}
		return text
	}
	want := trail(first)
	nodes[1].eventually("the same audit trail on both servers", func() bool { return trail(nodes[1]) == want })
	var rows []auditView
	if err := json.Unmarshal([]byte(want), &rows); err != nil {
		t.Fatal(err)
	}
	var actions []string
	for _, r := range rows {
		actions = append(actions, r.Action)
		if r.Address != "127.0.0.1" || (r.Actor == rows[0].Actor) == (r.Action == actionBootstrap) {
			t.Errorf("a change by %q from %q: %s", r.Actor, r.Address, r.Action)
		}
	}
	done := []string{actionLeave, actionRun, actionPut, actionRun, actionPut, actionRun, actionPut, actionCreateToken, actionBootstrap}
	if !slices.Equal(actions, done) || rows[0].Object != "n3" {
		t.Errorf("the audit trail has %v, want %v", actions, done)
	}
}

// ---- Who has no cluster key

// An intruder can reach a cluster plane, and has no key: it makes a request to
// a path there, by whatever way it has, and returns what comes back.
type intruder func(plane, path, body string, headers ...string) string

// breakIn tries to take over a node, and says what worked: what one command
// line was enough for when a plane could be without a key.
func (ask intruder) breakIn(t *testing.T, p *process, plane string) {
	t.Helper()
	var self record
	answer := ask(plane, "/self", "{}", headerFormat+": "+planeFormat)
	if at := strings.Index(answer, "{\"Name"); at >= 0 {
		json.NewDecoder(strings.NewReader(answer[at:])).Decode(&self)
	}
	if self.Cluster != "" {
		t.Errorf("the plane tells a stranger the id of the cluster: %s", answer)
	}
	post := func(path string, in any, headers ...string) string {
		body, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		return ask(plane, path, string(body), append(headers, headerFormat+": "+planeFormat, headerCluster+": "+self.Cluster)...)
	}
	if got := post("/api/v1/acl/bootstrap", none{}, headerActor+": "+actorBootstrap); strings.Contains(got, "SecretID") {
		t.Errorf("a stranger gets a management token: %s", got)
	}
	post("/raft", []message{{Kind: msgVoteNo, From: server{"evil", "id-evil"}, To: server{self.Name, self.ID}, Term: 1_000_000}})
	evidence := filepath.Join(t.TempDir(), "evidence")
	post("/dispatch", dispatch{Term: 2_000_000, Number: 1, Incarnation: self.Incarnation, Orders: []order{{Execution: 1 << 50, Job: "evil", Group: 1 << 50, Attempt: 1,
		Executor: "shell", Config: map[string]string{"command": "touch " + evidence}}}})
	p.must("GET", "/health", nil, nil)
	for end := time.Now().Add(time.Second); time.Now().Before(end); <-time.After(50 * time.Millisecond) {
		if _, err := os.Stat(evidence); err == nil {
			t.Errorf("a stranger ran a command as user %d", os.Geteuid())
			break
		}
	}
	if strings.Contains(p.log.String(), "term=1000001") {
		t.Error("a stranger moved the node to term 1,000,000")
	}
}

// nobody is another user of the machine, with curl.
func nobody(t *testing.T) intruder {
	return func(plane, path, body string, headers ...string) (all string) {
		for _, scheme := range []string{"http", "https"} {
			args := []string{"-sk", "--max-time", "10", "-X", "POST", "-d", body}
			for _, h := range headers {
				args = append(args, "-H", h)
			}
			out, _ := asNobody(t, "curl", append(args, scheme+"://"+plane+path)...)
			all += out
		}
		return all
	}
}

// asNobody runs a command as another user than the one that runs belfry. Only
// root can.
func asNobody(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath(name)
	if os.Geteuid() != 0 || err != nil {
		t.Skipf("needs root, to be another user, and %s: %v", name, err)
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// httpJobs is who may store http jobs on a node, under names that begin so. It
// sees what they print.
func httpJobs(t *testing.T, p *process, secret, name string) intruder {
	n := 0
	call := func(method, path string, in, out any) int {
		t.Helper()
		body, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		r, err := http.NewRequest(method, p.url+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Dkron-Token", secret)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err == nil && out != nil {
			err = json.Unmarshal(text, out)
		}
		if err != nil {
			t.Fatalf("%s %s: %s, %v", method, path, text, err)
		}
		return resp.StatusCode
	}
	return func(plane, path, body string, headers ...string) (all string) {
		t.Helper()
		list, err := json.Marshal(headers)
		if err != nil {
			t.Fatal(err)
		}
		for _, scheme := range []string{"http", "https"} {
			n++
			j := job{Name: fmt.Sprintf("%s%d", name, n), Schedule: "@manually", Executor: executorHTTP, ExecutorConfig: map[string]string{
				"method": "POST", "url": scheme + "://" + plane + path, "headers": string(list), "body": body, "tlsNoVerifyPeer": "true", "timeout": "10"}}
			if got := call("POST", "/v1/jobs", &j, nil); got != http.StatusCreated {
				t.Fatalf("the job %s: %d", j.Name, got)
			}
			p.eventually("node for the job", func() bool { return call("POST", "/v1/jobs/"+j.Name+"/run", nil, nil) == http.StatusAccepted })
			var runs []struct {
				FinishedAt *time.Time `json:"finished_at"`
				Output     string     `json:"output"`
			}
			p.eventually("end of the job", func() bool {
				call("GET", "/v1/jobs/"+j.Name+"/executions", nil, &runs)
				return len(runs) > 0 && runs[0].FinishedAt != nil && !runs[0].FinishedAt.IsZero()
			})
			all += runs[0].Output
		}
		return all
	}
}

// publicDir is an empty directory that other users reach.
func publicDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(filepath.Dir(dir), 0o755)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// startDefault starts a server on which nothing is set but its addresses and these flags.
func startDefault(t *testing.T, flags ...string) (p *process, plane string) {
	t.Helper()
	plane = freeAddr(t)
	p = launch(t, program(t, publicDir(t), []string{"BELFRY_HTTP_ADDR=127.0.0.1:0", "BELFRY_BIND_ADDR=" + plane}, slices.Concat([]string{"agent", "--server", "--bootstrap-expect=1"}, flags)...))
	p.eventually("a leader", func() bool { return strings.Contains(p.log.String(), "this server is the leader") })
	return p, plane
}

// TestKey_User: another user of the machine gets nothing of a server on which nothing is set but --acl.
func TestKey_User(t *testing.T) {
	t.Parallel()
	p, plane := startDefault(t, "--acl")
	nobody(t).breakIn(t, p, plane)
	for _, name := range []string{keyFile, bootstrapFile, "belfry.db"} {
		path := filepath.Join(p.cmd.Dir, "belfry.data", name)
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
		if out, err := asNobody(t, "cat", path); err == nil {
			t.Errorf("another user reads %s: %.20q", name, out)
		}
	}
}

// TestKey_Job: an http job gets nothing of its node's plane either, where
// everybody may store jobs.
func TestKey_Job(t *testing.T) {
	t.Parallel()
	p, plane := startDefault(t)
	httpJobs(t, p, "", "job").breakIn(t, p, plane)
}

// TestKey_Token: nor does who has a token for the jobs of one team.
func TestKey_Token(t *testing.T) {
	t.Parallel()
	p, plane := startDefault(t, "--acl")
	cli := func(secret string, command ...string) (v tokenView) {
		t.Helper()
		cmd := program(t, p.cmd.Dir, []string{"BELFRY_HTTP_ADDR=" + strings.TrimPrefix(p.url, "http://"), "BELFRY_TOKEN=" + secret}, command...)
		out, err := cmd.CombinedOutput()
		if err == nil {
			err = json.Unmarshal(out, &v)
		}
		if err != nil {
			t.Fatalf("%v: %s, %v", command, out, err)
		}
		return v
	}
	root := cli("", "acl", "bootstrap").SecretID
	const rules = `{"path": {"/v1/jobs/team-a-*": {"capabilities": ["create", "read", "update", "delete", "list"]}, "/v1/jobs/team-a-**": {"capabilities": ["read", "list"]}}}`
	if err := os.WriteFile(filepath.Join(p.cmd.Dir, "team-a.json"), []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	cli(root, "acl", "policy", "apply", "--name=team-a", "--rules-file=team-a.json")
	team := cli(root, "acl", "token", "create", "--name=team-a", "--policy=team-a").SecretID
	httpJobs(t, p, team, "team-a-").breakIn(t, p, plane)
}

// TestKey_Proc: a job of the node's own user finds no secret in what the node
// leaves to it, nor in what /proc tells of the node, nor in that of process 1
// of a container, which starts it.
func TestKey_Proc(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc")
	}
	t.Run("Node", func(t *testing.T) { lookAround(t, nil, 3) })
	t.Run("ProcessOne", func(t *testing.T) {
		unshare, err := exec.LookPath("unshare")
		if err != nil || os.Geteuid() != 0 {
			t.Skip("needs root and unshare")
		}
		lookAround(t, []string{unshare, "--pid", "--fork", "--mount-proc", "--setgid=65534", "--setuid=65534"}, 4)
	})
}

// lookAround has a job look for the secrets of its node, which runs as another user if the test is root, and below the
// program in by. So many things must be denied to it.
func lookAround(t *testing.T, by []string, denied int) {
	dir := publicDir(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	key := strings.TrimSpace(newKey())
	cmd := program(t, dir, []string{"BELFRY_ENCRYPT=" + key, "BELFRY_TOKEN=a-token"}, "agent", "--server", "--bootstrap-expect=1", "--http-addr=127.0.0.1:0", "--bind-addr=127.0.0.1:0", "--data-dir=data")
	if os.Geteuid() == 0 { // who reads all; the node is another's then
		cmd.Path = filepath.Join(dir, "belfry")
		copyFile(t, self, cmd.Path)
		if err := errors.Join(os.Chmod(cmd.Path, 0o755), os.Chown(dir, 65534, 65534)); err != nil {
			t.Fatal(err)
		}
		cmd.Args[0], cmd.SysProcAttr = cmd.Path, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	if by != nil {
		cmd.Path, cmd.Args, cmd.SysProcAttr = by[0], slices.Concat(by, cmd.Args), nil
	}
	inherited, err := os.Create(filepath.Join(t.TempDir(), "inherited"))
	if err != nil {
		t.Fatal(err)
	}
	defer inherited.Close()
	cmd.ExtraFiles = []*os.File{inherited}
	p := launch(t, cmd)
	if by != nil { // it does not die with its parent
		one := processOne(t, cmd)
		t.Cleanup(func() { syscall.Kill(one, syscall.SIGKILL) })
	}
	p.eventually("a leader", func() bool { status, _ := p.get("/v1/isleader", nil); return status == http.StatusOK })
	j := shellJob("look", "@manually", "env; cd /proc/$PPID; cat cmdline environ; cat maps; ls -l fd; cat /proc/1/environ; ls -l /proc/self/fd; echo done")
	p.must("POST", "/v1/jobs", j, nil)
	p.eventually("node for the job", func() bool { status, _ := p.send("POST", "/v1/jobs/look/run", nil, nil); return status < 300 })
	var runs []struct{ Output string }
	p.eventually("output of the job", func() bool {
		status, _ := p.get("/v1/jobs/look/executions", &runs)
		return status == http.StatusOK && len(runs) > 0 && strings.Contains(runs[0].Output, "done\n")
	})
	out := runs[0].Output
	for _, secret := range []string{key, "a-token", "belfry.db", "[heap]", inherited.Name()} {
		if strings.Contains(out, secret) {
			t.Errorf("the job sees %s", secret)
		}
	}
	if n := strings.Count(out, "denied"); n < denied || !strings.Contains(out, "agent\x00--server") {
		t.Errorf("%d things are denied to the job, want environ, maps and fd of the node that it looks at, and environ of process 1 if it is ours:\n%s", n, out)
	}
}

// TestKey_Three: three servers that share a key which belfry made stand, and a stranger gets nothing of any.
func TestKey_Three(t *testing.T) {
	t.Parallel()
	dir, key, first := t.TempDir(), sharedKey(t), freeAddr(t)
	var nodes []*process
	for _, name := range []string{"n1", "n2", "n3"} {
		plane := first
		if nodes != nil {
			plane = "127.0.0.1:0"
		}
		nodes = append(nodes, launch(t, program(t, dir, nil, "agent", "--server", "--bootstrap-expect=3", key, "--node-name="+name, "--data-dir="+name,
			"--http-addr=127.0.0.1:0", "--bind-addr="+plane, "--retry-join="+first)))
	}
	for _, p := range nodes {
		p.eventually("a healthy server", func() bool { status, _ := p.get("/health", nil); return status == http.StatusOK })
	}
	var peers []struct{ Address string }
	if nodes[0].get("/v1/raft/peers", &peers); len(peers) != 3 {
		t.Fatalf("the servers are %v", peers)
	}
	for _, peer := range peers {
		nobody(t).breakIn(t, nodes[0], peer.Address)
	}
}

// writeCert writes a certificate for 127.0.0.1 that signs itself, and its key.
func writeCert(t *testing.T, dir, name string, serial int64) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{name + ".pem": {Type: "CERTIFICATE", Bytes: cert}, name + ".key": {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTLS: the API speaks to clients that the CA has signed, and to no others;
// SIGHUP puts renewed files in force, and broken ones not.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	for i, name := range []string{"node", "alice", "mallory"} {
		writeCert(t, dir, name, int64(i+1))
	}
	p := launch(t, program(t, dir, nil, "agent", "--server", "--bootstrap-expect=1", "--node-name=n1", "--http-addr=127.0.0.1:0", "--bind-addr=127.0.0.1:0", "--data-dir=data",
		"--tls-cert=node.pem", "--tls-key=node.key", "--tls-ca=alice.pem"))
	ask := func(who ...string) error {
		args := append([]string{"raft", "list-peers", "--http-addr=" + p.url}, who...)
		out, err := program(t, dir, nil, args...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%s: %w", out, err)
		}
		return err
	}
	alice := []string{"--tls-ca=node.pem", "--tls-cert=alice.pem", "--tls-key=alice.key"}
	p.eventually("an answer to alice", func() bool { return ask(alice...) == nil })
	if ask("--tls-ca=node.pem", "--tls-cert=mallory.pem", "--tls-key=mallory.key") == nil || ask("--tls-ca=node.pem") == nil {
		t.Error("somebody without a certificate of the CA was answered")
	}
	if err := ask("--tls-ca=mallory.pem", "--tls-cert=alice.pem", "--tls-key=alice.key"); err == nil || !strings.Contains(err.Error(), "with --tls-ca") {
		t.Errorf("a client met a node that its CA has not signed: %v", err)
	}
	hangup := func(logged string) {
		if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		p.eventually("reload", func() bool { return strings.Contains(p.log.String(), logged) })
	}
	writeCert(t, dir, "node", 4)
	if ask(alice...) == nil {
		t.Error("the new certificate is in force before SIGHUP")
	}
	hangup("reloaded its certificate")
	if err := ask(alice...); err != nil {
		t.Error("after SIGHUP:", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "node.key"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	hangup("keeps its former certificate")
	if err := ask(alice...); err != nil {
		t.Error("after a SIGHUP with a broken file:", err)
	}
}

func TestNodeLimits_CheckAddr(t *testing.T) {
	for _, c := range []struct {
		addr                  string
		open, metadata, alone bool // reached with the zero limits, with AllowMetadata, with DenyPrivate
	}{
		{"169.254.169.254", false, true, false},
		{"169.254.0.1", false, true, false},
		{"::ffff:169.254.169.254", false, true, false},
		{"64:ff9b::a9fe:a9fe", false, true, false},
		{"fe80::1", false, true, false},
		{"fe80::1%eth0", false, true, false},
		{"fd00:ec2::254", false, true, false},
		{"fd00:ec2::23", false, true, false},
		{"fd00:ec2:1::1", false, true, false},
		{"64:ff9b:1::a9fe:a9fe", false, true, false},
		{"fd00:c1::a9fe:a9fe", false, true, false},
		{"fd00:42::42", false, true, false},
		{"fd00:a9fe:a9fe::1", false, true, false},
		{"fd00:100::100:200", false, true, false},
		{"100.100.100.200", false, true, false},
		{"168.63.129.16", false, true, false},
		{"127.0.0.1", true, true, false},
		{"::1", true, true, false},
		{"::ffff:127.0.0.1", true, true, false},
		{"0.0.0.0", true, true, false},
		{"0.1.2.3", true, true, false},
		{"10.1.2.3", true, true, false},
		{"172.16.0.1", true, true, false},
		{"192.168.1.1", true, true, false},
		{"100.64.0.1", true, true, false},
		{"fd12::1", true, true, false},
		{"64:ff9b::0a00:0001", true, true, false},
		{"192.0.2.1", true, true, true},
		{"2001:db8::1", true, true, true},
		{"169.253.255.255", true, true, true},
	} {
		addr := netip.MustParseAddr(c.addr)
		for _, l := range []struct {
			limits nodeLimits
			want   bool
		}{{nodeLimits{}, c.open}, {nodeLimits{AllowMetadata: true}, c.metadata}, {nodeLimits{DenyPrivate: true}, c.alone}} {
			if err := l.limits.checkAddr(addr); (err == nil) != l.want {
				t.Errorf("%s with %+v: %v, want reached %t", c.addr, l.limits, err, l.want)
			}
		}
	}
}

// TestHideSecrets_Receivers: whoever knows the URL of a receiver can send to it, so neither a token that may not store the
// job nor the audit trail sees it.
func TestHideSecrets_Receivers(t *testing.T) {
	j := job{Name: "a", Notify: []notifyRule{{On: []string{eventFailed}, Webhook: "https://hooks.example.org/secret", Every: true}}}
	doc, err := hideSecrets([]byte(j.document()))
	was, is, err2 := difference(nil, &j)
	changed := j
	changed.Notify = []notifyRule{{On: []string{eventLost}, Webhook: "https://hooks.example.org/secret"}}
	before, after, err3 := difference(&j, &changed)
	for _, text := range []string{string(doc), is, before, after} {
		if strings.Contains(text, "secret") || !strings.Contains(text, hiddenValue) {
			t.Errorf("the receiver is shown: %s", text)
		}
	}
	if err := errors.Join(err, err2, err3); err != nil || was != "null" || !strings.Contains(is, `"every":true`) {
		t.Errorf("%s, %s, %v", was, is, err)
	}
}

// TestHideSecrets_Params: a parameter that looks secret is hidden as an executor_config is, in executions too, and what
// hides it is no value.
func TestHideSecrets_Params(t *testing.T) {
	params := map[string]string{"date": "2026-11-01", "env": "test", "api_password": "hunter2", "TOKEN": "hunter2"}
	j := job{Name: "a", Params: params}
	doc, err := hideSecrets([]byte(j.document()))
	_, is, err2 := difference(nil, &j)
	before, _, err3 := difference(&j, &job{Name: "a"})
	run, err4 := plainJSON((&executionRow{Params: params}).view(time.UTC))
	for _, text := range []string{string(doc), is, before, string(run)} {
		if strings.Contains(text, "hunter2") || !strings.Contains(text, `"params":{"TOKEN":"<hidden>","api_password":"<hidden>","date":"2026-11-01","env":"test"}`) {
			t.Errorf("the parameters are shown as in %s", text)
		}
	}
	if err := errors.Join(err, err2, err3, err4); err != nil {
		t.Error(err)
	}
	if err := checkParams(map[string]string{"api_password": hiddenValue}); err == nil || err.Error() != `params.api_password: "<hidden>" stands for a hidden value; send the value itself` {
		t.Errorf("a hidden value sent back: %v", err)
	}
}
