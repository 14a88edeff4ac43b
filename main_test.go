package main

import (
	"bufio"
	"bytes"
	stdcmp "cmp"
	"context"
	"crypto/sha256"
	"database/sql"
	"database/sql/driver"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"io"
	"io/fs"
	"log"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var (
	update     = flag.Bool("update", false, "write the golden files instead of comparing with them")
	rounds     = flag.Int("rounds", 20, "lives of a real server that end with SIGKILL")
	roundsSeed = flag.Uint64("rounds.seed", 0, "seed of the rounds; 0 takes one from the clock")
	faults     = flag.Int("faults", 10, "faults that a cluster of real servers meets")
	faultsSeed = flag.Uint64("faults.seed", 0, "seed of the faults and partitions; 0 takes one from the clock")
	netns      = flag.Bool("netns", false, "cut the network between real servers; needs root, and ip of iproute2")
	kills      = flag.Int("kills", 0, "leaders to kill while the time to the next one is measured")
	burst      = flag.Int("burst", 0, "http runs that fall due in one second while their rate is measured")
)

// asProgram makes the test binary the program.
const asProgram = "TEST_BINARY_IS_BELFRY"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	flag.Set("test.parallel", "4") // unless the command line says otherwise: most tests wait for elections and processes
	flag.Parse()
	if testing.Short() {
		*simSeeds, *rulesSeeds, *schedulePairs, *storeLogs = min(*simSeeds, 30), 1, min(*schedulePairs, 200), min(*storeLogs, 5)
	}
	os.Exit(m.Run())
}

// golden compares got with testdata/<name>.txt, or writes it there.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", filepath.FromSlash(name)+".txt")
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; run the test with -update to write it", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// ---- Borders between the files

// TestFiles_Imports: what a file is not about, it cannot reach. The compiler
// does not see these borders, because all files are one package.
func TestFiles_Imports(t *testing.T) {
	only := map[string][]string{ // package → files that may import it
		"database/sql":       {"store.go"},
		"modernc.org/sqlite": {"store.go"},
		"os/exec":            {"executor.go"},
		"os/signal":          {"main.go"},
		"flag":               {"main.go"},
	}
	never := map[string][]string{ // file → packages that it must not import
		"scheduler.go": {"net/http"},
		"store.go":     {"net/http"},
		"acl.go":       {"net/http"},
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(gotoken.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range f.Imports {
			pkg, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if allowed, ok := only[pkg]; ok && !slices.Contains(allowed, file) {
				t.Errorf("%s imports %s, which belongs to %v alone", file, pkg, allowed)
			}
			if slices.Contains(never[file], pkg) {
				t.Errorf("%s imports %s, which is none of its business", file, pkg)
			}
		}
	}
}

// usedUpward are the package-level names that a file uses of one above it. The list may only get shorter.
var usedUpward = map[string][]string{
	"executor.go": {"believable", "errMalformed"},
	"acl.go":      {"validateName"},
	"store.go":    {"instant", "job"},
	"cluster.go":  {"connAdmitted", "serveUntil"},
}

// TestSource_NamesRunDown: a file uses names of its own and of those below it: main, api, scheduler, cluster, store, and
// below these executor, acl and stats, which are side by side. So each can be read without those above it.
func TestSource_NamesRunDown(t *testing.T) {
	order := []string{"executor.go", "acl.go", "stats.go", "store.go", "cluster.go", "scheduler.go", "api.go", "main.go"}
	level := func(file string) int { return max(2, slices.Index(order, file)) }
	home := map[string]string{} // name → file
	files := map[string]*ast.File{}
	for _, name := range order {
		f, err := parser.ParseFile(gotoken.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = f
		for object := range f.Scope.Objects {
			home[object] = name
		}
	}
	for _, name := range order {
		keys := map[*ast.Ident]bool{} // of composite literals: fields, not names
		ast.Inspect(files[name], func(n ast.Node) bool {
			if pair, ok := n.(*ast.KeyValueExpr); ok {
				if key, ok := pair.Key.(*ast.Ident); ok {
					keys[key] = true
				}
			}
			return true
		})
		var up []string
		for _, id := range files[name].Unresolved {
			if at := home[id.Name]; at != "" && !keys[id] && level(at) > level(name) {
				up = append(up, id.Name)
			}
		}
		slices.Sort(up)
		if diff := cmp.Diff(usedUpward[name], slices.Compact(up)); diff != "" {
			t.Errorf("%s uses names of files above it (-allowed +used):\n%s", name, diff)
		}
	}
}

// TestFiles_Locks: nobody holds a mutex while it waits for a channel, for time or
// for the network. That keeps a slow peer from stopping who only wants to look,
// and the clock of a bubble from standing still. A select with a default waits
// for nothing.
func TestFiles_Locks(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	looked := 0
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		fset := gotoken.NewFileSet()
		f, err := parser.ParseFile(fset, file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		w := &lockWalk{wrong: func(n ast.Node, what string) { t.Errorf("%s: a mutex is held across %s", fset.Position(n.Pos()), what) }}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Body != nil {
					w.block(n.Body.List, strings.HasSuffix(n.Name.Name, "Locked"))
				}
			case *ast.FuncLit:
				w.block(n.Body.List, false)
			}
			return true
		})
		looked += w.locks
	}
	if looked < 50 {
		t.Errorf("only %d locks were found", looked)
	}
}

// lockWalk goes through the statements of functions in the order in which they run.
type lockWalk struct {
	wrong func(n ast.Node, what string)
	locks int
}

// block returns whether a mutex is held behind the statements.
func (w *lockWalk) block(list []ast.Stmt, held bool) bool {
	for _, s := range list {
		held = w.statement(s, held)
	}
	return held
}

func (w *lockWalk) statement(s ast.Stmt, held bool) bool {
	switch s := s.(type) {
	case *ast.BlockStmt:
		return w.block(s.List, held)
	case *ast.IfStmt:
		w.look(held, s.Init, s.Cond)
		after := w.branch(s.Body.List, held)
		if s.Else != nil {
			return w.branch([]ast.Stmt{s.Else}, held) || after
		}
		return after
	case *ast.ForStmt:
		w.look(held, s.Init, s.Cond, s.Post)
		return w.branch(s.Body.List, held)
	case *ast.RangeStmt:
		w.look(held, s.X)
		return w.branch(s.Body.List, held)
	case *ast.SwitchStmt:
		w.look(held, s.Init, s.Tag)
		return w.cases(s.Body.List, held)
	case *ast.TypeSwitchStmt:
		return w.cases(s.Body.List, held)
	case *ast.SelectStmt:
		waits := !slices.ContainsFunc(s.Body.List, func(c ast.Stmt) bool { return c.(*ast.CommClause).Comm == nil })
		if held && waits {
			w.wrong(s, "a select")
		}
		return w.cases(s.Body.List, held)
	case *ast.ExprStmt:
		switch name := called(s.X); name {
		case "Lock", "RLock":
			w.locks++
			return true
		case "Unlock", "RUnlock":
			return false
		}
	case *ast.DeferStmt, *ast.GoStmt:
		return held // a deferred Unlock keeps the mutex to the end
	}
	w.look(held, s)
	return held
}

// branch is a block that may not be run, or may not come to its end.
func (w *lockWalk) branch(list []ast.Stmt, held bool) bool {
	after := w.block(list, held)
	if len(list) > 0 {
		switch list[len(list)-1].(type) {
		case *ast.ReturnStmt, *ast.BranchStmt:
			return held
		}
	}
	return after
}

func (w *lockWalk) cases(list []ast.Stmt, held bool) bool {
	after := held
	for _, s := range list {
		switch c := s.(type) {
		case *ast.CaseClause:
			after = w.branch(c.Body, held) && after
		case *ast.CommClause:
			after = w.branch(c.Body, held) && after
		}
	}
	return after
}

// look looks for what waits in parts of a statement.
func (w *lockWalk) look(held bool, nodes ...ast.Node) {
	for _, n := range nodes {
		if !held || n == nil || reflect.ValueOf(n).IsNil() {
			continue
		}
		ast.Inspect(n, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncLit:
				return false // it is looked at by itself
			case *ast.SendStmt:
				w.wrong(n, "a send")
			case *ast.UnaryExpr:
				if n.Op == gotoken.ARROW {
					w.wrong(n, "a receive")
				}
			case *ast.CallExpr:
				if name := called(n); slices.Contains([]string{"Sleep", "sleep", "pause", "Do", "RoundTrip", "exchange", "Dial", "DialContext", "Accept", "tell", "call"}, name) {
					w.wrong(n, name)
				}
			}
			return true
		})
	}
}

// called is the last part of the name of what an expression calls.
func called(e ast.Expr) string {
	call, ok := e.(*ast.CallExpr)
	if !ok {
		return ""
	}
	switch f := call.Fun.(type) {
	case *ast.SelectorExpr:
		return f.Sel.Name
	case *ast.Ident:
		return f.Name
	}
	return ""
}

// ---- The command line

// TestCommandLine: what an operator types, and what comes of it, to the letter.
func TestCommandLine(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { taken.Close() })
	locked := t.TempDir()
	s, err := openStore(filepath.Join(locked, "data"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.close() })
	newer := t.TempDir()
	writeNewerStore(t, filepath.Join(newer, "data"))
	agent := []string{"agent", "--server", "--bootstrap-expect=1", "--http-addr=127.0.0.1:0", "--bind-addr=127.0.0.1:0", "--data-dir=data"}

	for _, c := range []struct {
		name string
		dir  string // '': an empty one
		env  []string
		args []string
	}{
		{name: "version", args: []string{"version"}},
		{name: "help", args: []string{"help"}},
		{name: "agent-help", args: []string{"agent", "-h"}},
		{name: "raft-help", args: []string{"raft", "-h"}},
		{name: "acl-help", args: []string{"acl", "-h"}},
		{name: "leave-help", args: []string{"leave", "-h"}},
		{name: "keygen-help", args: []string{"keygen", "--help"}},
		{name: "help-of", args: []string{"help", "acl", "policy", "apply"}},
		{name: "help-unknown", args: []string{"help", "nope"}},
		{name: "keygen-words", args: []string{"keygen", "x"}},
		{name: "version-words", args: []string{"version", "x"}},
		{name: "leave-words", args: []string{"leave", "c"}},
		{name: "peers-words", args: []string{"raft", "list-peers", "foo"}},
		{name: "acl-flag", args: []string{"acl", "token", "list", "--nam=a"}},
		{name: "unknown-command", args: []string{"serve"}},
		{name: "raft-alone", args: []string{"raft"}},
		{name: "remove-nobody", args: []string{"raft", "remove-peer"}},
		{name: "bad-executor", args: append(slices.Clone(agent), "--executors=http,docker")},
		{name: "bad-job-env", args: append(slices.Clone(agent), "--job-env=PATH,BELFRY_ENCRYPT")},
		{name: "bad-job-env-all", args: append(slices.Clone(agent), "--job-env=clean,PATH")},
		{name: "bad-origin", args: append(slices.Clone(agent), "--cors-origin=*")},
		{name: "bad-prefix", args: append(slices.Clone(agent), "--http-prefix=belfry/")},
		{name: "bad-tls-alone", args: append(slices.Clone(agent), "--tls-cert=cert.pem")},
		{name: "bad-tls-file", args: append(slices.Clone(agent), "--tls-cert=nowhere.pem", "--tls-key=nowhere.key")},
		{name: "acl-alone", args: []string{"acl"}},
		{name: "acl-no-name", args: []string{"acl", "token", "create"}},
		{name: "acl-no-secret", args: []string{"acl", "bootstrap", "--data-dir=nowhere"}},
		{name: "acl-no-rules", args: []string{"acl", "policy", "apply", "--name=a", "--rules-file=nowhere"}},
		{name: "leave-nobody", args: []string{"leave", "--http-addr=127.0.0.1:1"}},
		{name: "recover-unsure", args: []string{"recover"}},
		{name: "recover-nothing", args: []string{"recover", "--yes-i-lost-a-majority", "--data-dir=nowhere"}},
		{name: "bad-key", args: append(slices.Clone(agent), "--encrypt=c2hvcnQ=")},
		{name: "key-and-su", args: append(slices.Clone(agent), "--allow-su=nobody", "--encrypt=ozUCZtqRxzCNYOhrJiydKaYvCdQMz/ZQR3DPiciAPf4=")},
		{name: "bad-key-file", args: append(slices.Clone(agent), "--encrypt-file=nowhere")},
		{name: "empty-key-file", args: append(slices.Clone(agent), "--encrypt-file=/dev/null")},
		{name: "bad-join", args: append(slices.Clone(agent), "--retry-join=127.0.0.1:8946,provider=aws tag_key=role tag_value=dkron")},
		{name: "bad-bind", args: append(slices.Clone(agent[:4]), `--bind-addr={{ GetInterfaceIP "eth0" }}`)},
		{name: "config-nowhere", args: append(slices.Clone(agent), "--config=nowhere.yml")},
		{name: "rpc-addr", args: []string{"raft", "list-peers", "--rpc-addr=127.0.0.2:6868", "--http-addr=127.0.0.1:1"}},
		{name: "rpc-addr-bad", args: []string{"leave", "--rpc-addr=localhost"}},
		{name: "bad-multiplier", args: append(slices.Clone(agent), "--raft-multiplier=11")},
		{name: "expect-without-server", args: []string{"agent", "--bootstrap-expect=3"}},
		{name: "unknown-flag", args: []string{"agent", "--sever"}},
		{name: "not-a-flag", args: append(slices.Clone(agent), "now")},
		{name: "bad-number", args: []string{"agent", "--bootstrap-expect=one"}},
		{name: "bad-duration", args: append(slices.Clone(agent), "--shutdown-grace=10")},
		{name: "bad-level", args: append(slices.Clone(agent), "--log-level=loud")},
		{name: "bad-tag", args: append(slices.Clone(agent), "--tag=web")},
		{name: "reserved-tag", args: append(slices.Clone(agent), "--tag=server=false")},
		{name: "bad-zone", args: append(slices.Clone(agent), "--timezone=Mars/Base")},
		{name: "bad-catchup", args: append(slices.Clone(agent), "--catchup-window=25h")},
		{name: "bad-catchup-short", args: append(slices.Clone(agent), "--catchup-window=9s")},
		{name: "bad-adopt", args: append(slices.Clone(agent), "--adopt")},
		{name: "bad-max-concurrent", args: append(slices.Clone(agent), "--max-concurrent=-1")},
		{name: "tag-max-concurrent", args: append(slices.Clone(agent), "--tag=max-concurrent=2")},
		{name: "bad-keep", args: append(slices.Clone(agent), "--executions-keep=0")},
		{name: "bad-grace", args: append(slices.Clone(agent), "--shutdown-grace=-1s")},
		{name: "bad-notify", args: append(slices.Clone(agent), "--notify-webhook=hooks.example.org/secret")},
		{name: "bad-notify-on", args: append(slices.Clone(agent), "--notify-on=failed,fails")},
		{name: "bad-webhook-payload", args: append(slices.Clone(agent), "--webhook-payload={{.JobName")},
		{name: "bad-webhook-value", args: append(slices.Clone(agent), "--pre-webhook-payload={{.Job}}")},
		{name: "bad-webhook-header", args: append(slices.Clone(agent), "--webhook-headers=secret")},
		{name: "bad-mail-from", args: append(slices.Clone(agent), "--mail-host=mail")},
		{name: "bad-mail-port", args: append(slices.Clone(agent), "--mail-port=0")},
		{name: "bad-mail-port-high", args: append(slices.Clone(agent), "--mail-port=65536")},
		{name: "bad-slack", args: append(slices.Clone(agent), "--slack-webhook=ops=hooks/secret")},
		{name: "bad-heartbeat", args: append(slices.Clone(agent), "--heartbeat-url=ftp://host")},
		{name: "bad-address", args: append(slices.Clone(agent), "--http-addr=8080")},
		{name: "no-node-name", args: append(slices.Clone(agent), "--node-name=")},
		{name: "not-loopback", args: append(slices.Clone(agent), "--http-addr=0.0.0.0:0")},
		{name: "not-loopback-all", args: append(slices.Clone(agent), "--http-addr=:0")},
		{name: "port-in-use", args: append(slices.Clone(agent), "--http-addr="+taken.Addr().String())},
		{name: "locked", dir: locked, args: agent},
		{name: "newer", dir: newer, args: agent},
		{name: "read-only", args: append(slices.Clone(agent), "--data-dir="+readOnlyDir(t))},
		{name: "environment-bad", env: []string{"BELFRY_EXECUTIONS_KEEP=many"}, args: agent},
		{name: "environment-belfry-first", env: []string{"DKRON_EXECUTIONS_KEEP=7", "BELFRY_EXECUTIONS_KEEP=0"}, args: agent},
		{name: "environment-dkron", env: []string{"DKRON_EXECUTIONS_KEEP=0"}, args: agent},
		{name: "environment-flag-first", env: []string{"BELFRY_EXECUTIONS_KEEP=0"}, args: append(slices.Clone(agent), "--executions-keep=-1", "--shutdown-grace=-1s")},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := c.dir
			if dir == "" {
				dir = t.TempDir()
			}
			cmd := program(t, dir, c.env, c.args...)
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			overdue := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
			defer overdue.Stop()
			err := cmd.Run()
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			text := transcript(c.env, c.args, stdout.String(), stderr.String(), cmd.ProcessState.ExitCode())
			host, _ := os.Hostname()
			for from, to := range map[string]string{taken.Addr().String(): "<taken address>", readOnlyDir(t): "<read-only directory>", strconv.Quote(host): `"<host>"`} {
				text = strings.ReplaceAll(text, from, to)
			}
			golden(t, "cli/"+c.name, text)
		})
	}
}

// transcript is what a terminal would show, with ! before lines of stderr.
func transcript(env, args []string, stdout, stderr string, status int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "$ %s\n", strings.Join(slices.Concat(env, []string{"belfry"}, args), " "))
	for line := range strings.Lines(stdout) {
		b.WriteString(line)
	}
	for line := range strings.Lines(stderr) {
		b.WriteString("! " + line)
	}
	fmt.Fprintf(&b, "exit status %d\n", status)
	return b.String()
}

// readOnlyDir is a directory that nobody may write into, not even root.
func readOnlyDir(t *testing.T) string {
	const dir = "/proc/sys"
	if _, err := os.Stat(dir); err != nil {
		t.Skip("needs a file system that cannot be written")
	}
	return dir
}

// keygen prints a key that --encrypt takes, another each time.
func TestKeygen(t *testing.T) {
	var texts []string
	for range 2 {
		var out bytes.Buffer
		if status := commandLine(t.Context(), []string{"keygen"}, nil, &out, io.Discard); status != exitOK {
			t.Fatalf("exit status %d", status)
		}
		if key, err := decodeKey(out.String()); err != nil || len(key) != 32 {
			t.Errorf("%q is a key of %d bytes, %v", out.String(), len(key), err)
		}
		texts = append(texts, out.String())
	}
	if texts[0] == texts[1] {
		t.Error("two keys are the same")
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("needs a file that is always full")
	}
	defer full.Close()
	if status := commandLine(t.Context(), []string{"keygen"}, nil, full, io.Discard); status != exitError {
		t.Errorf("exit status %d where the key cannot be written, want %d", status, exitError)
	}
}

// TestConfig_Environment: a flag wins over BELFRY_, that over DKRON_, and that
// over the default.
func TestConfig_Environment(t *testing.T) {
	server := []string{"--server", "--bootstrap-expect=1"}
	for _, c := range []struct {
		name string
		args []string
		env  []string
		want int
	}{
		{"Default", server, nil, 100},
		{"Dkron", server, []string{"DKRON_EXECUTIONS_KEEP=7"}, 7},
		{"BelfryOverDkron", server, []string{"DKRON_EXECUTIONS_KEEP=7", "BELFRY_EXECUTIONS_KEEP=8"}, 8},
		{"FlagOverAll", append(slices.Clone(server), "--executions-keep=9"), []string{"DKRON_EXECUTIONS_KEEP=7", "BELFRY_EXECUTIONS_KEEP=8"}, 9},
		{"AllFromEnvironment", nil, []string{"DKRON_SERVER=true", "DKRON_BOOTSTRAP_EXPECT=1", "DKRON_EXECUTIONS_KEEP=7"}, 7},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg, err := parseConfig(c.args, c.env, io.Discard)
			if err != nil || cfg.ExecutionsKept != c.want {
				t.Errorf("parseConfig(%q, %q) keeps %d executions, %v, want %d", c.args, c.env, cfg.ExecutionsKept, err, c.want)
			}
		})
	}
}

// TestConfig_Zone: TZ may name a zone as the C library understands it.
func TestConfig_Zone(t *testing.T) {
	server := []string{"--server", "--bootstrap-expect=1"}
	local, err := parseConfig(server, nil, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for tz, want := range map[string]string{
		"": local.Timezone, ":/etc/localtime": local.Timezone, "Europe/Berlin": "Europe/Berlin", ":Europe/Berlin": "Europe/Berlin",
		"/usr/share/zoneinfo/Europe/Berlin": "Europe/Berlin", ":/usr/share/zoneinfo/Europe/Berlin": "Europe/Berlin",
	} {
		if cfg, err := parseConfig(server, []string{"TZ=" + tz}, io.Discard); err != nil || cfg.Timezone != want {
			t.Errorf("TZ=%s: zone %q, %v, want %q", tz, cfg.Timezone, err, want)
		}
	}
	for _, tz := range []string{"UTC0", "CET-1CEST", "/nowhere"} {
		if _, err := parseConfig(server, []string{"TZ=" + tz}, io.Discard); err == nil || !strings.HasPrefix(err.Error(), "TZ: ") {
			t.Errorf("TZ=%s: %v, want an error that names TZ", tz, err)
		}
		if _, err := parseConfig(append(server, "--timezone=UTC"), []string{"TZ=" + tz}, io.Discard); err != nil {
			t.Errorf("TZ=%s with --timezone: %v", tz, err)
		}
	}
}

// TestConfig_Unused: a misspelt variable does not go unnoticed.
func TestConfig_Unused(t *testing.T) {
	env := []string{"BELFRY_HTTP_ADR=:80", "BELFRY_LOG_LEVEL=warn", "BELFRY_TOKEN=x", "DKRON_TAG=a=1", "DKRON_WEBHOOK_URL=x", "HOME=/"}
	cfg, err := parseConfig([]string{"--server"}, env, io.Discard)
	if diff := cmp.Diff([]string{"BELFRY_HTTP_ADR", "DKRON_WEBHOOK_URL"}, cfg.Unused); err != nil || diff != "" {
		t.Errorf("%v, unused (-want +got):\n%s", err, diff)
	}
}

// TestConfig_Tags: several tags come in several flags, or with commas between
// them, as they must in the environment.
func TestConfig_Tags(t *testing.T) {
	want := map[string]string{"a": "1", "b": "2=3"}
	for _, c := range []struct{ args, env []string }{
		{args: []string{"--tag=a=1", "--tag=b=2=3"}},
		{args: []string{"--tag=a=1,b=2=3"}},
		{env: []string{"BELFRY_TAG=a=1, b=2=3"}},
	} {
		cfg, err := parseConfig(append([]string{"--server"}, c.args...), c.env, io.Discard)
		if diff := cmp.Diff(want, cfg.Tags); err != nil || diff != "" {
			t.Errorf("%q, %q: %v, tags (-want +got):\n%s", c.args, c.env, err, diff)
		}
	}
}

// TestConfig_Alone: "belfry" founds a cluster of one server, where the
// environment does not say something else.
func TestConfig_Alone(t *testing.T) {
	for _, c := range []struct {
		name   string
		env    []string
		server bool
		expect int
	}{
		{"Nothing", nil, true, 1},
		{"Expect", []string{"BELFRY_BOOTSTRAP_EXPECT=3"}, true, 3},
		{"ExpectOfDkron", []string{"DKRON_SERVER=true", "DKRON_BOOTSTRAP_EXPECT=3"}, true, 3},
		{"NoServer", []string{"BELFRY_SERVER=false", "BELFRY_RETRY_JOIN=127.0.0.1:8946"}, false, 0},
		{"Joins", []string{"BELFRY_RETRY_JOIN=127.0.0.1:8946"}, true, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg, err := parseConfig(alone(c.env), c.env, io.Discard)
			if err != nil || cfg.Server != c.server || cfg.BootstrapExpect != c.expect {
				t.Errorf("server: %t, expects %d, %v, want %t, %d", cfg.Server, cfg.BootstrapExpect, err, c.server, c.expect)
			}
		})
	}
}

// ---- Real processes

// program is the command that runs this program in a directory.
func program(t *testing.T, dir string, env []string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Dir = dir
	cmd.Env = append([]string{asProgram + "=1", "TZ=UTC", "PATH=" + os.Getenv("PATH"), "GOCOVERDIR=" + t.TempDir()}, env...)
	return cmd
}

// sharedKey returns the flag that gives nodes of a test one cluster key.
func sharedKey(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte(newKey()), 0o600); err != nil {
		t.Fatal(err)
	}
	return "--encrypt-file=" + path
}

// process is a server that runs.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	url  string
	log  lockedBuffer
	done chan struct{} // closed when it has ended
}

// lockedBuffer collects what a process writes.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

var firstLine = regexp.MustCompile(`^belfry [0-9.]+: API and page at (https?://[0-9.:]+(?:/[a-z]+)?), data in \S+\n$`)

// startServer starts a server in a directory and waits until it leads. It is
// killed when the test ends.
func startServer(t *testing.T, dir string, args ...string) *process {
	t.Helper()
	args = append([]string{"agent", "--server", "--bootstrap-expect=1", "--node-name=n1", "--http-addr=127.0.0.1:0", "--bind-addr=127.0.0.1:0", "--data-dir=data"}, args...)
	p := launch(t, program(t, dir, nil, args...))
	p.eventually("a leader", func() bool { status, _ := p.get("/v1/isleader", nil); return status == http.StatusOK })
	return p
}

// launch starts a node and waits until it has said where its API is. It is
// killed when the test ends.
func launch(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, cmd: cmd, done: make(chan struct{})}
	stdout, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdout.Close()
	p.cmd.Stdout, p.cmd.Stderr = w, &p.log
	p.start()
	w.Close()
	line := make([]byte, 4096)
	n, err := stdout.Read(line)
	m := firstLine.FindStringSubmatch(string(line[:n]))
	if m == nil {
		p.kill()
		t.Fatalf("the server's first line is %q, %v, want the URL and the data directory\n%s", line[:n], err, &p.log)
	}
	p.url = m[1]
	return p
}

// start starts the process, which is killed when the test ends.
func (p *process) start() {
	p.t.Helper()
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	go func() {
		p.cmd.Wait() // its status is in ProcessState
		close(p.done)
	}()
	p.t.Cleanup(p.kill)
}

// eventually polls until ok, or fails.
func (p *process) eventually(what string, ok func() bool) {
	p.t.Helper()
	waitFor(p.t, what, func() string { return p.log.String() }, ok)
}

func waitFor(t *testing.T, what string, more func() string, ok func() bool) {
	t.Helper()
	deadline, tick := time.After(30*time.Second), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("no %s within half a minute\n%s", what, more())
		}
	}
}

// kill ends the process as a power cut would end it.
func (p *process) kill() {
	p.cmd.Process.Kill() // fails if it has ended
	<-p.done
}

// end sends SIGTERM and waits for the end.
func (p *process) end() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	p.ended()
}

func (p *process) ended() {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		p.t.Fatalf("the server does not end\n%s", &p.log)
	}
}

var client = &http.Client{Timeout: 20 * time.Second}

// get reads a document; status 0 means that there was no answer.
func (p *process) get(path string, doc any) (status int, body string) {
	return p.send("GET", path, nil, doc)
}

func (p *process) send(method, path string, in, out any) (status int, text string) {
	var body io.Reader
	if in != nil {
		doc, err := json.Marshal(in)
		if err != nil {
			p.t.Error(err)
		}
		body = bytes.NewReader(doc)
	}
	req, err := http.NewRequest(method, p.url+path, body)
	if err != nil {
		p.t.Error(err)
		return 0, err.Error()
	}
	res, err := client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	doc, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err.Error()
	}
	if out != nil && res.StatusCode < 300 {
		if err := json.Unmarshal(doc, out); err != nil {
			p.t.Errorf("%s %s answers %q: %v", method, path, doc, err)
		}
	}
	return res.StatusCode, string(doc)
}

// must is send for what has to succeed.
func (p *process) must(method, path string, in, out any) {
	p.t.Helper()
	if status, text := p.send(method, path, in, out); status < 200 || status > 299 {
		p.t.Fatalf("%s %s %v: status %d, %s\n%s", method, path, in, status, text, &p.log)
	}
}

func shellJob(name, schedule, command string) *job {
	return &job{Name: name, Schedule: schedule, Executor: executorShell, ExecutorConfig: map[string]string{"shell": "true", "command": command}}
}

// begun waits until a job's run has written its first line.
func begun(p *process, path string) {
	p.t.Helper()
	p.eventually("sign of life of the run", func() bool { doc, _ := os.ReadFile(path); return len(doc) > 0 })
}

// outcomes are those of the executions of a job, oldest first.
func outcomes(p *process, name string) (list []string) {
	p.t.Helper()
	var views []executionView
	p.must("GET", "/v1/jobs/"+name+"/executions?_sort=id&_order=ASC", nil, &views)
	for _, v := range views {
		list = append(list, v.Outcome)
	}
	return list
}

// TestServe_Stop: the first signal lets runs end for as long as the grace time,
// then ends them; their results are there after a restart.
func TestServe_Stop(t *testing.T) {
	for _, c := range []struct {
		name, command, grace, want string
	}{
		{"WaitsForRuns", "echo > begun; while [ ! -e go ]; do sleep 0.05; done", "20s", outcomeSuccess},
		{"EndsRuns", "echo > begun; exec sleep 600", "100ms", outcomeInterrupted},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			p := startServer(t, dir, "--shutdown-grace="+c.grace)
			p.must("POST", "/v1/jobs", shellJob("long", "@manually", "cd "+dir+"; "+c.command), nil)
			p.must("POST", "/v1/jobs/long/run", nil, nil)
			begun(p, filepath.Join(dir, "begun"))
			if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			p.eventually("closed door", func() bool { status, _ := p.get("/health", nil); return status == 0 })
			if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			p.ended()
			if got := p.cmd.ProcessState.ExitCode(); got != exitOK {
				t.Errorf("exit status %d, want %d\n%s", got, exitOK, &p.log)
			}
			p = startServer(t, dir)
			if diff := cmp.Diff([]string{c.want}, outcomes(p, "long")); diff != "" {
				t.Errorf("outcomes after the restart (-want +got):\n%s", diff)
			}
			p.end()
			checkDir(t, filepath.Join(dir, "data"))
		})
	}
}

// TestServe_SameKeyAtOnce: of requests that overlap with one Idempotency-Key one
// is done, all are answered alike, and nobody who comes after them is held up.
func TestServe_SameKeyAtOnce(t *testing.T) {
	t.Parallel()
	p := startServer(t, t.TempDir())
	for round := range 5 {
		var wg sync.WaitGroup
		answers := make([]string, 8)
		for i := range answers {
			wg.Go(func() {
				doc := fmt.Sprintf(`{"name":"same-%d","schedule":"@manually"}`, round)
				req, err := http.NewRequest("POST", p.url+"/v1/jobs", strings.NewReader(doc))
				if err != nil {
					t.Error(err)
					return
				}
				req.Header.Set("Idempotency-Key", fmt.Sprint("key ", round))
				res, err := client.Do(req)
				if err != nil {
					answers[i] = err.Error()
					return
				}
				defer res.Body.Close()
				body, _ := io.ReadAll(res.Body)
				answers[i] = fmt.Sprint(res.StatusCode, " ", string(body))
			})
		}
		wg.Wait()
		slices.Sort(answers)
		if list := slices.Compact(answers); len(list) != 1 || !strings.HasPrefix(list[0], "201 ") {
			t.Fatalf("round %d: overlapping requests with one key are answered %q, want one 201", round, list)
		}
	}
	p.must("POST", "/v1/jobs", shellJob("after", "@manually", "true"), nil)
}

// TestServe_StuckWrite: a write that does not end is told in /health within five
// seconds, and no longer once it has ended.
func TestServe_StuckWrite(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := startServer(t, dir)
	db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "data", "belfry.db")+"?_txlock=immediate&_pragma=busy_timeout(10000)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	tx, err := db.Begin() // as a disk that hangs: the server's writer waits
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	answered := make(chan int, 1)
	go func() {
		status, _ := p.send("POST", "/v1/jobs", shellJob("a", "@manually", "true"), nil)
		answered <- status
	}()
	text := ""
	p.eventually("word of a write that hangs", func() bool {
		var status int
		status, text = p.get("/health", nil)
		return status == http.StatusServiceUnavailable
	})
	if took := time.Since(began); took > 5*time.Second || !strings.Contains(text, "does not end") {
		t.Errorf("after %s /health says %s", took, text)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if status := <-answered; status != http.StatusCreated {
		t.Errorf("the write that hung is answered %d, want 201", status)
	}
	p.eventually("good health", func() bool { status, _ := p.get("/health", nil); return status == http.StatusOK })
}

// TestServe_StopAgent: a node without a database that stops says what became of
// its runs before it ends, for its disk may never be seen again.
func TestServe_StopAgent(t *testing.T) {
	t.Parallel()
	dir, far := t.TempDir(), t.TempDir()
	p := startServer(t, dir)
	var members []member
	p.must("GET", "/v1/members", nil, &members)
	agent := launch(t, program(t, far, nil, "agent", "--node-name=far", "--tag=where=far", "--http-addr=127.0.0.1:0", "--bind-addr=127.0.0.1:0", "--data-dir=data",
		"--shutdown-grace=100ms", "--retry-join="+members[0].Tags["rpc_addr"], "--encrypt-file="+filepath.Join(dir, "data", keyFile)))
	long := shellJob("long", "@manually", "cd "+far+"; echo > begun; exec sleep 600")
	long.Tags = map[string]string{"where": "far:1"}
	p.must("POST", "/v1/jobs", long, nil)
	p.eventually("node that can run it", func() bool { status, _ := p.send("POST", "/v1/jobs/long/run", nil, nil); return status < 300 })
	begun(agent, filepath.Join(far, "begun"))
	agent.end()
	if got := agent.cmd.ProcessState.ExitCode(); got != exitOK {
		t.Errorf("exit status %d, want %d\n%s", got, exitOK, &agent.log)
	}
	if diff := cmp.Diff([]string{outcomeInterrupted}, outcomes(p, "long")); diff != "" {
		t.Errorf("outcomes when the agent has ended (-want +got):\n%s\n%s", diff, &agent.log)
	}
}

// TestServe_LeaveDrained: a node that leaves with drain, an agent or the leader itself, gets nothing new, and goes when
// what it runs has ended.
func TestServe_LeaveDrained(t *testing.T) {
	t.Parallel()
	bind, key := freeAddr(t), sharedKey(t)
	node := func(name string, args ...string) *process {
		args = append([]string{"agent", key, "--node-name=" + name, "--tag=where=" + name, "--http-addr=127.0.0.1:0", "--data-dir=data"}, args...)
		return launch(t, program(t, t.TempDir(), nil, args...))
	}
	first := node("n1", "--server", "--bootstrap-expect=1", "--bind-addr="+bind)
	other := node("n2", "--server", "--bind-addr=127.0.0.1:0", "--retry-join="+bind)
	agent := node("n3", "--bind-addr=127.0.0.1:0", "--retry-join="+bind)
	other.eventually("two voters", func() bool {
		var peers []raftPeer
		status, text := other.get("/v1/raft/peers", nil)
		return status == http.StatusOK && json.Unmarshal([]byte(text), &peers) == nil && len(peers) == 2 && peers[0].Voter && peers[1].Voter
	})
	testLeaveDrained(t, other, agent, "n3")
	testLeaveDrained(t, other, first, "n1")
}

func testLeaveDrained(t *testing.T, other, p *process, name string) {
	dir := t.TempDir()
	long := shellJob("long-"+name, "@manually", "cd "+dir+"; echo > begun; until [ -e over ]; do sleep 0.05; done")
	long.Tags = map[string]string{"where": name}
	other.must("POST", "/v1/jobs", long, nil)
	other.eventually("node that can run it", func() bool {
		status, _ := other.send("POST", "/v1/jobs/"+long.Name+"/run", nil, nil)
		return status < 300
	})
	begun(p, filepath.Join(dir, "begun"))
	left := make(chan int, 1)
	go func() {
		resp, err := http.Post(p.url+"/v1/leave?drain", "", nil)
		if err != nil {
			t.Error(err)
			left <- 0
			return
		}
		resp.Body.Close()
		left <- resp.StatusCode
	}()
	other.eventually("drained node", func() bool {
		_, text := other.get("/v1/members", nil)
		return strings.Contains(text, `"drained":true,"id":"`+name+`"`)
	})
	if status, text := other.send("POST", "/v1/jobs/"+long.Name+"/run", nil, nil); status != http.StatusConflict {
		t.Errorf("a run on %s, which is drained, is answered %d %s", name, status, text)
	}
	select {
	case status := <-left:
		t.Errorf("%s has left with %d, and something runs there", name, status)
	default:
	}
	if err := os.WriteFile(filepath.Join(dir, "over"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if status := <-left; status != http.StatusOK {
		t.Errorf("the leave of %s is answered %d, want 200", name, status)
	}
	<-p.done
	other.eventually("leader", func() bool {
		status, _ := other.get("/v1/isleader", nil)
		return name != "n1" || status == http.StatusOK
	})
	if got := outcomes(other, long.Name); !slices.Equal(got, []string{outcomeSuccess}) {
		t.Errorf("outcomes of what ran on %s: %q, want one success", name, got)
	}
}

// TestServe_Timezone: the zone of a cluster stays, and who asks for another is
// told so.
func TestServe_Timezone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, c := range []struct {
		zone string
		told bool
	}{{"Europe/Berlin", false}, {"Asia/Tokyo", true}, {"Europe/Berlin", false}} {
		p := startServer(t, dir, "--timezone="+c.zone)
		p.must("POST", "/v1/jobs", shellJob("a", "@every 1s", "true"), nil)
		p.eventually("run, so that the cluster is made", func() bool { return len(outcomes(p, "a")) > 0 })
		p.end()
		if told := strings.Contains(p.log.String(), "cluster=Europe/Berlin timezone="+c.zone); told != c.told {
			t.Errorf("%s: told of another zone: %t, want %t\n%s", c.zone, told, c.told, &p.log)
		}
	}
}

// TestServe_Ready: from the first 200 of /health on writes are done.
func TestServe_Ready(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for i := range 3 {
		p := launch(t, program(t, dir, nil, "agent", "--server", "--bootstrap-expect=1", "--node-name=n1", "--http-addr=127.0.0.1:0", "--bind-addr=127.0.0.1:0", "--data-dir=data"))
		unready := 0
		p.eventually("readiness", func() bool {
			status, _ := p.get("/health", nil)
			if status == http.StatusServiceUnavailable {
				unready++
			}
			return status == http.StatusOK
		})
		if status, text := p.send("POST", "/v1/jobs", shellJob("a", "@manually", "true"), nil); status != http.StatusCreated {
			t.Errorf("start %d: a write is answered %d %s by a server that was ready", i, status, text)
		}
		t.Logf("/health was 503 %d times", unready)
		p.end()
	}
}

// clientVaries is what differs from run to run in what the client prints, and what a golden file has in its place. The
// width of a column follows.
var clientVaries = []struct {
	pattern *regexp.Regexp
	instead string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?Z?`), "<time>"},
	{regexp.MustCompile(`\b\d+(-n1)\b`), "<id>$1"},
	{regexp.MustCompile(`("?group"?:?) \d+`), "$1 <id>"},
	{regexp.MustCompile(`\b[0-9.]+(ms|s)\b`), "<duration>"},
	{regexp.MustCompile(`127\.0\.0\.1:\d{2,}`), "<address>"},
	{regexp.MustCompile(`   +`), "  "},
}

// clientTest runs the client against a server and collects what a terminal would show.
type clientTest struct {
	*testing.T
	dir string
	url string
	env []string
	out strings.Builder
}

// write writes a file for the commands.
func (c *clientTest) write(name, text string) {
	c.Helper()
	path := filepath.Join(c.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		c.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		c.Fatal(err)
	}
}

// command runs one command; a word in single quotes may have spaces in it.
func (c *clientTest) command(line string) {
	c.Helper()
	var args []string
	for i, part := range strings.Split(line, "'") {
		if i%2 == 1 {
			args = append(args, part)
		} else {
			args = append(args, strings.Fields(part)...)
		}
	}
	cmd := program(c.T, c.dir, append(c.env, "BELFRY_HTTP_ADDR="+c.url), args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		c.Fatal(err)
	}
	c.out.WriteString(transcript(nil, args, stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()))
}

// done compares what the commands since the last call have shown.
func (c *clientTest) done(name string) {
	c.Helper()
	text := c.out.String()
	c.out.Reset()
	for _, v := range clientVaries {
		text = v.pattern.ReplaceAllString(text, v.instead)
	}
	golden(c.T, "cli/"+name, text)
}

// TestClient: what a user types who manages jobs, and what comes of it.
func TestClient(t *testing.T) {
	t.Parallel()
	p := startServer(t, t.TempDir())
	c := &clientTest{T: t, dir: t.TempDir(), url: p.url}
	backup := shellJob("backup", "0 0 3 * * *", "echo saved")
	backup.Metadata = map[string]string{"team": "a"}
	queued := shellJob("queued", "@manually", "sleep 600")
	queued.Concurrency = concurrencyQueue
	report := shellJob("report", "@manually", "echo began; exit 3")
	slow := shellJob("slow", "@manually", "echo began > "+filepath.Join(c.dir, "began")+"; sleep 600")
	child := shellJob("child", "", "true")
	child.ParentJob = "backup"
	for _, j := range []*job{backup, report, slow, child, queued, shellJob("wrong", "@manually", "exit 4")} {
		p.must("POST", "/v1/jobs", j, nil)
	}
	type steps struct {
		name  string
		lines []string
	}
	run := func(list ...steps) {
		for _, s := range list {
			for _, line := range s.lines {
				c.command(line)
			}
			c.done("client-" + s.name)
		}
	}
	run(
		steps{"run", []string{"run backup -f", "run -f report", "run nope", "run", "run backup report"}},
	)
	p.eventually("end of the child", func() bool { return slices.Equal(outcomes(p, "child"), []string{outcomeSuccess}) })
	run(
		steps{"jobs", []string{"jobs", "jobs --metadata=team=a --json", "jobs --status=failed", "jobs --q=nope", "jobs --metadata=team", "jobs --status=fail",
			"jobs --disabled", "jobs --disabled=maybe"}},
		steps{"job", []string{"job backup", "job nope"}},
		steps{"logs", []string{"logs backup", "logs slow", "logs nope", "logs 12-n1"}},
		steps{"executions", []string{"executions --failed", "executions --since=1m", "executions --since=7d", "executions --since=x"}},
		steps{"rerun", []string{"rerun --failed --since=1h --dry-run", "rerun --failed --since=1h", "rerun --missed --since=1h", "rerun --since=1h"}},
		steps{"rerun-refused", []string{"disable child", "disable report", "run wrong -f", "rerun --failed --since=1h", "enable report"}},
		steps{"disable", []string{"disable backup", "disable backup", "jobs --disabled=true", "disable nope"}},
		steps{"enable", []string{"enable backup", "enable backup"}},
		steps{"members", []string{"members", "health"}},
		steps{"hold", []string{"hold 'a new switch' --metadata=team=a", "run backup", "run report -f", "run backup --force -f", "hold", "release",
			"release --metadata=team=a", "run backup -f", "drain n1", "run backup", "drain --undo n1", "drain --undo n1", "drain nobody", "run backup -f"}},
	)
	p.must("POST", "/v1/jobs/slow", nil, nil)
	begun(p, filepath.Join(c.dir, "began"))
	run(steps{"kill", []string{"kill slow"}})
	p.eventually("end of slow", func() bool { return slices.Equal(outcomes(p, "slow"), []string{outcomeKilled}) })
	run(
		steps{"kill-nothing", []string{"kill slow", "kill nope", "logs slow", "logs -f slow"}},
		steps{"delete", []string{"delete backup", "delete child", "delete child"}},
		steps{"run-waits", []string{"run queued", "run queued", "run queued -f"}},
	)
	tick := shellJob("tick", "@at "+time.Now().Add(2*time.Second).Format(time.RFC3339), "true")
	p.must("POST", "/v1/jobs", tick, nil)
	p.eventually("tick", func() bool { return slices.Contains(outcomes(p, "tick"), outcomeSuccess) })
	run(steps{"why", []string{"why tick", "why report", "why tick --at=2020-01-31T12:00:00Z", "why nope", "why tick --at=noon"}})

	berlin := shellJob("berlin", "0 30 2 * * *", "true")
	berlin.Timezone = "Europe/Berlin"
	p.must("POST", "/v1/jobs", berlin, nil)
	c.command("preview --job=berlin --from=2037-03-28T00:00:00Z --to=2037-03-31T00:00:00Z")
	c.command("preview --job=berlin --from=2037-10-24T00:00:00Z --to=2037-10-27 --json")
	c.command("preview --from=2037")
	golden(t, "cli/client-preview", c.out.String()) // its times are given
}

// TestClient_Apply: files of jobs become what runs, all of them or none.
func TestClient_Apply(t *testing.T) {
	t.Parallel()
	p := startServer(t, t.TempDir())
	c := &clientTest{T: t, dir: t.TempDir(), url: p.url}
	write := c.write
	p.must("POST", "/v1/jobs", shellJob("other", "@daily", "true"), nil)
	write("jobs/a.json", `{"name": "a", "schedule": "@hourly", "metadata": {"team": "web"}, "executor": "shell",
		"executor_config": {"command": "true", "env": "PASSWORD=one"}}`)
	write("jobs/b.json", `[{"name": "b", "parent_job": "a", "metadata": {"team": "web"}}, {"name": "c", "schedule": "@daily", "metadata": {"team": "web"}}]`)
	c.command("apply -f jobs --dry-run")
	c.command("jobs")
	c.command("apply -f jobs")
	c.command("apply -f jobs")
	write("jobs/a.json", `{"name": "a", "schedule": "0 0 4 * * *", "metadata": {"team": "web"}, "executor": "shell",
		"executor_config": {"command": "true", "env": "PASSWORD=two"}}`)
	write("jobs/b.json", `[{"name": "b", "parent_job": "a", "metadata": {"team": "web"}}]`)
	c.command("apply -f jobs --prune --metadata=team=web --dry-run")
	c.command("apply -f jobs --prune --metadata=team=web")
	c.command("jobs")

	write("bad.json", `[{"name": "a", "schedule": "never", "retries": 99999999999}, {"name": "A"}, {"name": "d", "parent_job": "nobody"},
		{"name": "e", "schedule": 5, "retries": "x", "tags": {"a": 7}, "timezone": "Mars/Base"}, {"schedule": "@daily"}, {"name": "new", "schedule": "@daily"}, {"name": "new", "schedule": "@daily"}]`)
	c.command("apply -f bad.json")
	write("orphan.json", `{"name": "x", "schedule": "@daily", "metadata": {"team": "web"}}`)
	p.must("POST", "/v1/jobs", &job{Name: "heir", ParentJob: "a"}, nil)
	c.command("apply -f orphan.json --prune --metadata=team=web")
	write("none.json", `[]`)
	c.command("apply -f none.json --prune --metadata=team=web")
	write("no.json", `jobs:`)
	c.command("apply -f no.json")
	c.command("apply -f nowhere.json")
	c.command("apply -f jobs --prune")
	c.command("apply")
	c.command("jobs --q=x")
	c.done("client-apply")
	c.command("export --metadata=team=web")
	golden(t, "cli/client-export", c.out.String())
}

// readCrontab reads a crontab of testdata as on a machine in Berlin.
func readCrontab(t *testing.T, name string) (c *crontab, text string) {
	t.Helper()
	doc, err := os.ReadFile(filepath.Join("testdata", "import", name+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	c = newCrontab("Europe/Berlin", time.Date(2026, 11, 30, 0, 0, 0, 0, time.UTC))
	c.system = name == "system"
	if err := c.read(string(doc)); err != nil {
		t.Fatal(err)
	}
	return c, string(doc)
}

// TestCrontab: two hundred lines as people write them, and the jobs that they become.
func TestCrontab(t *testing.T) {
	for _, name := range []string{"crontab", "system"} {
		c, _ := readCrontab(t, name)
		golden(t, "import/"+name+"-jobs", imported(t, c.jobs, c.report()))
	}
}

// imported has a line for each job, and the notes below.
func imported(t *testing.T, jobs []job, notes []string) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	for _, j := range jobs {
		if err := e.Encode(j); err != nil {
			t.Fatal(err)
		}
	}
	return b.String() + strings.Join(notes, "\n") + "\n"
}

// TestImport_Dkron: what a Dkron has becomes jobs with their counters and last times, from its API or from a file, and
// what cannot run here is said by job.
func TestImport_Dkron(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile(filepath.Join("testdata", "import", "dkron.json"))
	if err != nil {
		t.Fatal(err)
	}
	var docs []json.RawMessage
	if err := json.Unmarshal(doc, &docs); err != nil {
		t.Fatal(err)
	}
	jobs, notes := fromDkron(docs, false, time.Now())
	golden(t, "import/dkron-jobs", imported(t, jobs, notes))

	dkron := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Whom", "dkron1")
		if r.URL.Path != "/v1/jobs" || r.Header.Get("X-Dkron-Token") != "secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Write(doc)
	}))
	defer dkron.Close()
	p := startServer(t, t.TempDir())
	c := &clientTest{T: t, dir: t.TempDir(), url: p.url, env: []string{"TZ=UTC", "DKRON_TOKEN=secret", "BELFRY_TOKEN=of-ours"}}
	secure := httptest.NewTLSServer(dkron.Config.Handler)
	defer secure.Close()
	c.write("dkron.json", string(doc))
	c.write("ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})))
	for _, source := range []string{dkron.URL, dkron.URL + "/v1/jobs/", "dkron.json", secure.URL + " --tls-ca=ca.pem"} {
		cmd := program(t, c.dir, c.env, append([]string{"import", "dkron", "--disabled"}, strings.Fields(source)...)...)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", source, err)
		}
		if jobs, _ := fromDkron(docs, true, time.Now()); strings.Count(string(out), `"disabled": true`) != len(jobs) {
			t.Errorf("%s: not %d disabled jobs:\n%s", source, len(jobs), out)
		}
		c.write("jobs.json", string(out))
	}
	c.command("apply -f jobs.json")
	c.command("job full-job")
	c.command("jobs --metadata=from=dkron")
	c.command("jobs --metadata=from=dkron-disabled")
	c.command("preview --disabled --job=nightly --from=2037-01-01T00:00:00Z --to=2037-01-03T00:00:00Z")
	c.command("import dkron nowhere.json")
	c.command("import dkron http://127.0.0.1:1")
	c.write("bad.json", `{"name": "a", "schedule": "@daily", "executor": "shell", "executor_config": {"command": 7}}`)
	c.command("import dkron bad.json")
	c.write("bad.json", `jobs: []`)
	c.command("import dkron bad.json")
	c.command("import dkron")
	c.env = []string{"BELFRY_TOKEN=secret"}
	c.command("import dkron " + dkron.URL)
	c.done("import-dkron")
}

// TestConfig_File: a file like Dkron's gives what neither a flag nor the environment does, and what is not such a file is
// refused with its line.
func TestConfig_File(t *testing.T) {
	file := filepath.Join(t.TempDir(), "dkron.yml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("---\n# Dkron's\nserver: true\nbootstrap-expect: 3 # of three\nnode-name: \"b # c\"\nlog-level: 'warn'\ndata-dir: /var/lib/dkron\n" +
		"join:\n  - 10.0.0.1\n  - \"10.0.0.2:8946\"\nretry-join: [10.0.0.3, '10.0.0.4:99']\ntags:\n  role: web # x\n  \"disk\": 'ssd'\n" +
		"http-addr: :8080\nacl: true\nraft-multiplier: 0\nexecutions-keep: 7\ndatacenter:\nenable-prometheus: true\nrpc-port: 6868\n")
	cfg, err := parseConfig([]string{"--config=" + file, "--executions-keep=5"}, []string{"DKRON_DATA_DIR=data", "BELFRY_TAG=zone=a"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	want := config{
		Server: true, BootstrapExpect: 3, NodeName: "b # c", LogLevel: slog.LevelWarn, DataDir: "data", Join: []string{"10.0.0.1:8946", "10.0.0.2:8946"},
		RetryJoin: []string{"10.0.0.3:8946", "10.0.0.4:99"}, Tags: map[string]string{"zone": "a"}, HTTPAddr: ":8080", ACL: true, RaftMultiplier: 1,
		ExecutionsKept: 5, Datacenter: "dc1", Ignored: []string{"--enable-prometheus", "--rpc-port"},
	}
	got := config{
		Server: cfg.Server, BootstrapExpect: cfg.BootstrapExpect, NodeName: cfg.NodeName, LogLevel: cfg.LogLevel, DataDir: cfg.DataDir, Join: cfg.Join,
		RetryJoin: cfg.RetryJoin, Tags: cfg.Tags, HTTPAddr: cfg.HTTPAddr, ACL: cfg.ACL, RaftMultiplier: cfg.RaftMultiplier,
		ExecutionsKept: cfg.ExecutionsKept, Datacenter: cfg.Datacenter, Ignored: cfg.Ignored,
	}
	if !reflect.DeepEqual(got, want) || !cfg.nodeNamed {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if cfg, err := parseConfig([]string{"--config=" + file}, nil, io.Discard); err != nil || cfg.Tags["role"] != "web" || cfg.Tags["disk"] != "ssd" {
		t.Errorf("tags %v, %v", cfg.Tags, err)
	}
	for text, want := range map[string]string{
		"server: true\nretry-joyn: [a]\n":      `line 2: there is no setting "retry-joyn"; the nearest is "retry-join"`,
		"server: maybe\n":                      `line 1: server: invalid value "maybe": parse error`,
		"server: true\n\nserver: true\n":       `line 3: server stands there twice`,
		"# x\nserver\n":                        `line 2: is neither "name: value", nor an item of a list or of tags`,
		"server:true\n":                        `line 1: is neither "name: value", nor an item of a list or of tags`,
		"raft:\n  multiplier: 3\n":             `line 2: is neither "name: value", nor an item of a list or of tags`,
		"server: true\n  - x\n":                `line 2: is neither "name: value", nor an item of a list or of tags`,
		"node-name: {a: b}\n":                  `line 1: "{a: b}" is no single value; write it in quotes`,
		"node-name: |\n  a\n":                  `line 1: "|" is no single value; write it in quotes`,
		"node-name: \"a\n":                     `line 1: "\"a" is no single value; write it in quotes`,
		"node-name: 'a\n":                      `line 1: "'a" is no single value; write it in quotes`,
		"join:\n  -  \n":                       `line 2: is neither "name: value", nor an item of a list or of tags`,
		"region: ~\n":                          `line 1: "~" is no single value; write it in quotes`,
		"config: x\n":                          "",
		"retry-join: [\"provider=aws x=y\"]\n": "",
	} {
		write("bind-addr: 127.0.0.1\n" + text)
		_, err := parseConfig([]string{"--config=" + file}, nil, io.Discard)
		if want == "" {
			continue
		}
		line, _ := strconv.Atoi(want[5:6])
		want = fmt.Sprintf("--config %s: line %d%s", file, line+1, want[6:])
		if err == nil || err.Error() != want {
			t.Errorf("%q:\ngot  %v\nwant %s", text, err, want)
		}
	}
}

// FuzzSettings: what is read of a file is read again from what it was written as.
func FuzzSettings(f *testing.F) {
	f.Add("---\n# x\nserver: true # y\nlog-level: 'wa''rn'\njoin:\n  - 10.0.0.1\n  - \"a\\tb\"\nretry-join: [a, 'b']\ntags:\n  role: web\n")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := parseSettings(text)
		if err != nil || !utf8.ValidString(text) {
			return
		}
		var b strings.Builder
		name := ""
		for _, set := range list {
			if set.name != name {
				name = set.name
				fmt.Fprintf(&b, "%s:\n", name)
			}
			fmt.Fprintf(&b, "  - %s\n", strconv.Quote(set.value))
		}
		again, err := parseSettings(b.String())
		if err != nil {
			t.Fatalf("%q, written as %q: %v", text, b.String(), err)
		}
		for i := range list {
			if list[i].line, again[i].line = 0, 0; list[i] != again[i] {
				t.Errorf("%q: %v, then %v", text, list[i], again[i])
			}
		}
	})
}

// cronRuns says when cron runs a line, from what its manual says: it looks at the clock on the wall every minute. What it
// does at a time of the day is done once when the clock goes back, and made up for when it goes forward.
func cronRuns(fields []string, loc *time.Location, from, to time.Time) (runs []time.Time) {
	values := func(field string, low, high int, names string) (set [60]bool) {
		for item := range strings.SplitSeq(strings.ToLower(field), ",") {
			for i, name := range strings.Fields(names) {
				item = strings.ReplaceAll(item, name, strconv.Itoa(low+i))
			}
			span, stepText, _ := strings.Cut(item, "/")
			step, _ := strconv.Atoi(stdcmp.Or(stepText, "1"))
			first, last := low, high
			if span != "*" {
				a, b, ranged := strings.Cut(span, "-")
				first, _ = strconv.Atoi(a)
				if last, _ = strconv.Atoi(b); !ranged {
					last = first
				}
			}
			for n := first; n <= last; n += step {
				set[n] = true
			}
		}
		return set
	}
	minutes, hours, days := values(fields[0], 0, 59, ""), values(fields[1], 0, 23, ""), values(fields[2], 1, 31, "")
	months := values(fields[3], 1, 12, "jan feb mar apr may jun jul aug sep oct nov dec")
	weekdays := values(fields[4], 0, 7, "sun mon tue wed thu fri sat")
	weekdays[0] = weekdays[0] || weekdays[7]
	either := fields[2][0] != '*' && fields[4][0] != '*'
	due := func(wall time.Time) bool {
		day, weekday := days[wall.Day()], weekdays[wall.Weekday()]
		return minutes[wall.Minute()] && hours[wall.Hour()] && months[wall.Month()] && (day && weekday || either && (day || weekday))
	}
	wallOf := func(at time.Time) time.Time { // the clock on the wall, as if it were UTC's
		at = at.In(loc)
		return time.Date(at.Year(), at.Month(), at.Day(), at.Hour(), at.Minute(), 0, 0, time.UTC)
	}
	timeOfDay := fields[0][0] != '*' && fields[1][0] != '*'
	highest := wallOf(from.Add(-24 * time.Hour))
	for at := from.Add(-24 * time.Hour); at.Before(to); at = at.Add(time.Minute) {
		wall := wallOf(at)
		run := due(wall) && (!timeOfDay || wall.After(highest))
		for skipped := highest.Add(time.Minute); timeOfDay && skipped.Before(wall); skipped = skipped.Add(time.Minute) {
			run = run || due(skipped)
		}
		if wall.After(highest) {
			highest = wall
		}
		if run && !at.Before(from) {
			runs = append(runs, at.UTC())
		}
	}
	return runs
}

// TestCrontab_AsCron: in weeks with and without clock changes, preview lists for every line what cron does, but for what
// the report says.
func TestCrontab_AsCron(t *testing.T) {
	t.Parallel()
	words := map[string]string{"@hourly": "0 * * * *", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@weekly": "0 0 * * 0", "@monthly": "0 0 1 * *",
		"@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@every_minute": "* * * * *"}
	weeks := []time.Time{}
	for _, day := range []string{"2026-12-28", "2027-02-22", "2027-03-08", "2027-03-22", "2027-09-27", "2027-10-25", "2027-11-01", "2028-02-25"} {
		at, err := time.Parse(time.DateOnly, day)
		if err != nil {
			t.Fatal(err)
		}
		weeks = append(weeks, at)
	}
	setting := regexp.MustCompile(`^"?\w+"?\s*=`)
	for _, name := range []string{"crontab", "system"} {
		c, text := readCrontab(t, name)
		zone, n, compared, differ := "Europe/Berlin", 0, 0, 0
		jobs := c.jobs
		for line := range strings.Lines(text) {
			n++
			line = strings.TrimPrefix(strings.TrimSpace(line), "-")
			said := func(what string) bool {
				return slices.ContainsFunc(c.notes, func(note string) bool {
					return strings.HasPrefix(note, fmt.Sprintf("line %d: ", n)) && strings.Contains(note, what)
				})
			}
			if value, ok := strings.CutPrefix(line, "CRON_TZ="); ok {
				zone = strings.Trim(value, `"`)
			}
			if line == "" || line[0] == '#' || setting.MatchString(line) || said("left out") {
				continue
			}
			j := jobs[0]
			jobs = jobs[1:]
			fields := strings.Fields(line)
			if word, ok := words[strings.ToLower(fields[0])]; ok {
				fields = strings.Fields(word)
			}
			if slices.Contains(fields[:5], "~") { // any time is right
				continue
			}
			loc, err := time.LoadLocation(zone)
			if err != nil {
				t.Fatal(err)
			}
			differs := false
			for _, from := range weeks {
				to := from.AddDate(0, 0, 7)
				want := cronRuns(fields[:5], loc, from, to)
				var got []time.Time
				listed := listedJob{job: j, Next: timeOf(j.firstTick("UTC", from.UnixNano()-1, 0))}
				for _, p := range listed.preview(nil, "UTC", from, to) {
					got = append(got, p.Due.UTC())
				}
				if compared++; slices.Equal(got, want) {
					continue
				}
				if differs = true; !said("when the clock changes") {
					t.Errorf("line %d, %q in %s, week from %s:\ngot  %v\nwant %v", n, line, zone, from.Format(time.DateOnly), got, want)
				}
			}
			if said("when the clock changes") {
				if differ++; !differs {
					t.Errorf("line %d, %q in %s: the report says that it differs, but it does not", n, line, zone)
				}
			}
		}
		if len(jobs) > 0 {
			t.Errorf("%s: %d jobs are of no line", name, len(jobs))
		}
		t.Logf("%s: %d weeks of lines compared; the report says of %d lines that they differ", name, compared, differ)
	}
}

// TestHelp: every command says on -h what it does, with an example that it takes, and its flags.
func TestHelp(t *testing.T) {
	var b strings.Builder
	for _, c := range subcommands() {
		if c.kind == standalone { // see agent-help
			continue
		}
		words := append(strings.Fields(c.name), "-h")
		var stdout, stderr strings.Builder
		status := commandLine(t.Context(), words, nil, &stdout, &stderr)
		text := stdout.String()
		if c.kind != local { // with the flags of all that act on a node, which are the same
			var node remoteNode
			fs := flag.NewFlagSet("", flag.ContinueOnError)
			node.flags(fs)
			fs.VisitAll(func(f *flag.Flag) {
				if i := strings.Index(text, "  -"+f.Name+" "); i >= 0 && f.Usage != "" {
					end := i + strings.Index(text[i:], "\n    \t") + 1
					end += strings.Index(text[end:], "\n") + 1
					text = text[:i] + text[end:]
				}
			})
		}
		b.WriteString(transcript(nil, words, text, stderr.String(), status))
		if example := strings.Fields(c.example); !slices.Equal(example[:len(words)-1], words[:len(words)-1]) {
			t.Errorf("%s: the example is of another command: %s", c.name, c.example)
		}
	}
	golden(t, "cli/help-each", b.String())
}

// TestImport: crontabs as files, and what is wrong with them.
func TestImport(t *testing.T) {
	t.Parallel()
	c := &clientTest{T: t, dir: t.TempDir(), url: "http://127.0.0.1:1", env: []string{"TZ=UTC"}}
	c.write("deploy", "# Backup\n30 3 * * 7 backup.sh%all\n@reboot daemon\n")
	c.write("cron.d", "MAILTO=root\n*/5 * * * * www-data php /var/www/cron.php\n")
	c.write("bad", "0 3 * * * fine\n0 24 * * * hour\n0 3 * * 8 weekday\n0 3 * * *\n@noon x\nbackup 0 3 * * *\nCRON_TZ=Mars/Base\n"+
		"0~30 3 * * * random\n5/15 * * * * open\nA=b\\\n0 3 * * * root backup\n5 4 * * fri-mon backwards\n*/0 * * * * step\n0 3 L * * last\n0 3 * * * \xff\n")
	c.command("import crontab deploy --tag=role=cron --disabled")
	c.command("import crontab cron.d --system")
	c.write("more", "A=1\nCRON_TZ=Europe/Berlin\n0 4 * * * backup.sh\n@reboot daemon\n")
	c.command("import crontab more deploy")
	c.command("import crontab more bad")
	c.command("import crontab bad")
	c.command("import crontab deploy --system")
	c.command("import crontab nowhere")
	c.command("import crontab /etc/crontab")
	c.command("import crontab")
	c.command("import crontab -h")
	c.command("import")
	golden(t, "cli/import-crontab", c.out.String())
}

// FuzzCrontab: whatever a crontab holds, its jobs are ones that apply takes, each with a name of its own.
func FuzzCrontab(f *testing.F) {
	for _, name := range []string{"crontab", "system"} {
		text, err := os.ReadFile(filepath.Join("testdata", "import", name+".txt"))
		if err != nil {
			f.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			f.Add(line+"\n@daily x", name == "system")
		}
	}
	f.Fuzz(func(t *testing.T, text string, system bool) {
		c := newCrontab("Europe/Berlin", time.Date(2026, 11, 30, 0, 0, 0, 0, time.UTC))
		c.system = system
		if c.read(text) != nil {
			return
		}
		names := map[string]bool{}
		for _, j := range c.jobs {
			doc, err := json.Marshal(j)
			if err != nil {
				t.Fatal(err)
			}
			back, err := decodeJob(doc, job{})
			if err == nil {
				err = back.validate("UTC", time.Now().UnixNano())
			}
			if err != nil || !reflect.DeepEqual(back, j) || names[j.Name] {
				t.Errorf("%q became %s: %v", text, doc, err)
			}
			names[j.Name] = true
		}
	})
}

// TestClient_Errors: a server that is not there, is none, or wants a token, is one sentence and exit status 1.
func TestClient_Errors(t *testing.T) {
	t.Parallel()
	c := &clientTest{T: t, dir: t.TempDir(), url: "http://127.0.0.1:1"}
	c.command("jobs")
	c.command("health")
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") }))
	defer other.Close()
	c.url = other.URL
	c.command("jobs")
	dir := t.TempDir()
	p := launch(t, program(t, dir, nil, "agent", "--server", "--bootstrap-expect=1", "--node-name=n1", "--http-addr=127.0.0.1:0",
		"--bind-addr=127.0.0.1:0", "--data-dir=data", "--acl"))
	c.url = p.url
	c.command("jobs")
	c.command("run backup --token=wrong")
	alone := launch(t, program(t, t.TempDir(), nil, "agent", "--server", "--node-name=n1", "--http-addr=127.0.0.1:0",
		"--bind-addr=127.0.0.1:0", "--data-dir=data"))
	c.url = alone.url
	c.command("run backup")
	c.done("client-errors")
}

// TestClient_ClosedPipe: a reader that has seen enough is no error.
func TestClient_ClosedPipe(t *testing.T) {
	t.Parallel()
	p := startServer(t, t.TempDir())
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	p.must("POST", "/v1/jobs", shellJob("a", "@hourly", "true"), nil)
	for _, command := range []string{"jobs", "job a", "jobs --json", "export", "members", "preview", "executions", "help", "jobs -h"} {
		cmd := program(t, t.TempDir(), []string{"BELFRY_HTTP_ADDR=" + p.url}, strings.Fields(command)...)
		var stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = w, &stderr
		if err = cmd.Run(); stderr.Len() > 0 {
			t.Errorf("%s: %v, %s, want no word", command, err, &stderr)
		}
	}
}

// TestCommand_Redirect: a command gives its token to the address that it was
// given, and to no other.
func TestCommand_Redirect(t *testing.T) {
	t.Parallel()
	var stolen atomic.Int32
	thief := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Dkron-Token") != "" {
			stolen.Add(1)
		}
	}))
	defer thief.Close()
	node := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Whom", "n1")
		switch r.URL.Path {
		case "/v1/raft/peers":
			http.Redirect(w, r, thief.URL+r.URL.Path, http.StatusTemporaryRedirect)
		case "/v1/leave":
			http.Redirect(w, r, "/v1/left", http.StatusTemporaryRedirect)
		}
	}))
	defer node.Close()
	for _, c := range []struct {
		command string
		ok      bool
	}{{"raft list-peers", false}, {"leave", true}} {
		args := append(strings.Fields(c.command), "--http-addr="+node.URL, "--token=secret")
		out, err := program(t, t.TempDir(), nil, args...).CombinedOutput()
		if (err == nil) != c.ok || !c.ok && !strings.Contains(string(out), "use that one if you trust it") {
			t.Errorf("%s: %v\n%s", c.command, err, out)
		}
	}
	if stolen.Load() > 0 {
		t.Error("the token went to another address")
	}
}

// TestServe_Hangup: without a certificate SIGHUP changes nothing.
func TestServe_Hangup(t *testing.T) {
	t.Parallel()
	p := startServer(t, t.TempDir())
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	p.eventually("word in the log", func() bool { return strings.Contains(p.log.String(), "no certificate to reload") })
	p.must("GET", "/health", nil, nil)
	p.end()
}

// TestServe_SecondSignal: a second signal ends the process at once, whatever
// runs; the next process says what became of it.
func TestServe_SecondSignal(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := startServer(t, dir, "--shutdown-grace=10m")
	p.must("POST", "/v1/jobs", shellJob("long", "@manually", "cd "+dir+"; echo > begun; exec sleep 600"), nil)
	p.must("POST", "/v1/jobs/long/run", nil, nil)
	begun(p, filepath.Join(dir, "begun"))
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.eventually("closed door", func() bool { status, _ := p.get("/health", nil); return status == 0 })
	if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	p.ended()
	if status := p.cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() {
		t.Errorf("the process ended with %v, want the second signal", p.cmd.ProcessState)
	}
	p = startServer(t, dir)
	p.eventually("outcome", func() bool { return slices.Equal(outcomes(p, "long"), []string{outcomeInterrupted}) })
	p.end()
	checkDir(t, filepath.Join(dir, "data"))
}

// TestServe_NobodyReads: a node whose output nobody reads leads, runs jobs, and
// ends when it is told to.
func TestServe_NobodyReads(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(r, w *os.File)
	}{
		{"Full", func(_, w *os.File) {
			w.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
			for err := error(nil); err == nil; {
				_, err = w.Write(make([]byte, 4096))
			}
		}},
		{"Gone", func(r, _ *os.File) { r.Close() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			defer w.Close()
			c.spoil(r, w)
			addr, dir := freeAddr(t), t.TempDir()
			p := &process{t: t, url: "http://" + addr, done: make(chan struct{})}
			p.cmd = program(t, dir, nil, "agent", "--server", "--bootstrap-expect=1", "--http-addr="+addr, "--bind-addr=127.0.0.1:0", "--data-dir=data")
			p.cmd.Stdout, p.cmd.Stderr = w, w
			p.start()
			p.eventually("leader", func() bool { status, _ := p.get("/v1/isleader", nil); return status == http.StatusOK })
			p.must("POST", "/v1/jobs", shellJob("a", "@manually", "cd "+dir+"; (yes; echo $? > status) | head -n 1"), nil)
			p.must("POST", "/v1/jobs/a/run", nil, nil)
			p.eventually("outcome", func() bool { return slices.Equal(outcomes(p, "a"), []string{outcomeSuccess}) })
			if status, err := os.ReadFile(filepath.Join(dir, "status")); string(status) != "141\n" {
				t.Errorf("a command whose reader is gone ends with %q, %v, want that of SIGPIPE", status, err)
			}
			p.end()
			if got := p.cmd.ProcessState.ExitCode(); got != exitOK {
				t.Errorf("the node ended with %v", p.cmd.ProcessState)
			}
		})
	}
}

// TestLines: who writes does not wait for who reads; what does not fit is
// counted, and what fits is written before the end.
func TestLines(t *testing.T) {
	r, w := io.Pipe()
	l := newLines(w)
	large := "large " + strings.Repeat("x", 256_000)
	const larger = 100
	for range larger {
		fmt.Fprintln(l, large)
	}
	l.mu.Lock()
	if n := len(l.queue); n > linesBytesMax || n < linesBytesMax-2*len(large) {
		t.Errorf("%d bytes wait", n)
	}
	l.mu.Unlock()
	const sent = larger + 100_000
	for range sent - larger {
		fmt.Fprintln(l, "line")
	}
	read := make(chan string)
	go func() {
		text, _ := io.ReadAll(r)
		read <- string(text)
	}()
	l.close()
	w.Close()
	text := <-read
	kept, dropped := strings.Count(text, "line\n")+strings.Count(text, "large "), 0
	for _, m := range regexp.MustCompile(` lines=(\d+)\n`).FindAllStringSubmatch(text, -1) {
		n, _ := strconv.Atoi(m[1])
		dropped += n
	}
	if kept < linesBytesMax/len(large) || dropped == 0 || kept+dropped != sent {
		t.Errorf("%d lines written, %d counted as dropped, want %d in all", kept, dropped, sent)
	}
}

// checkDir checks the database of a server that has ended.
func checkDir(t *testing.T, dir string) {
	t.Helper()
	s, err := openStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.check(), s.close()); err != nil {
		t.Error(err)
	}
}

// ---- What the documents say

// A fence is a fenced block of the README.
type fence struct {
	at   string // file and line
	kind string // what follows ```
	text string
}

var fencePattern = regexp.MustCompile("(?ms)^```([^\n]+)\n(.*?)^```$")

// readFences returns the README and its blocks.
func readFences(t *testing.T) (doc string, list []fence) {
	t.Helper()
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	doc = string(text)
	for _, m := range fencePattern.FindAllStringSubmatchIndex(doc, -1) {
		at := fmt.Sprintf("README.md:%d", 1+strings.Count(doc[:m[4]], "\n"))
		list = append(list, fence{at, doc[m[2]:m[3]], doc[m[4]:m[5]]})
	}
	return doc, list
}

// inNet runs fn where programs start and addresses are listened to in a network namespace of its own, with these
// addresses besides 127.0.0.1.
func inNet(t *testing.T, addrs []string, fn func()) {
	t.Helper()
	if os.Geteuid() != 0 || runtime.GOOS != "linux" {
		t.Skip("needs root on Linux")
	}
	tool(t, "ip", "iproute2")
	tool(t, "curl", "curl")
	prepare := "ip link set lo up"
	for _, addr := range addrs {
		prepare += " && ip addr add " + addr + "/32 dev lo"
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		const cloneNewnet = 0x40000000
		if _, _, errno := syscall.RawSyscall(unshareNumbers[runtime.GOARCH], cloneNewnet, 0, 0); errno != 0 {
			done <- errno
		} else if out, err := exec.Command("sh", "-c", prepare).CombinedOutput(); err != nil {
			done <- fmt.Errorf("%w: %s", err, out)
		} else {
			fn()
			done <- nil
		}
	}()
	if err := <-done; err != nil {
		t.Skipf("has no network namespace of its own: %v", err)
	}
}

// unshareNumbers are the numbers of that system call by GOARCH; package syscall has them on Linux only.
var unshareNumbers = map[string]uintptr{"amd64": 272, "arm64": 97}

// TestREADME does what the README prints, as it prints it and in its order, in an empty directory of a machine with
// belfry, a crontab, and at 10.0.0.9 a Dkron and a chat. Where the README has an answer after a
// command, the command prints that on standard output, … being any text. A block that no test can run says so after its language, and is checked as far as it can be.
func TestREADME(t *testing.T) {
	t.Parallel()
	dir, bin, said := t.TempDir(), t.TempDir(), t.TempDir()
	self, err := os.Executable()
	if err == nil {
		err = os.Symlink(self, filepath.Join(bin, "belfry"))
	}
	crontab := "#!/bin/sh\ncase $1 in -l) printf '# Nightly report\\n30 3 * * * report --all >/dev/null\\n@reboot daemon\\n';; esac\n"
	if err := errors.Join(err, os.WriteFile(filepath.Join(bin, "crontab"), []byte(crontab), 0o755)); err != nil {
		t.Fatal(err)
	}
	doc, fences := readFences(t)
	if len(doc) > 16_000 {
		t.Errorf("the README has %d bytes, want at most 16,000", len(doc))
	}
	ci, err := os.ReadFile(".ci/run")
	if lines := strings.Split(strings.TrimSpace(string(ci)), "\n"); err != nil || !strings.Contains(doc, lines[len(lines)-1]) {
		t.Errorf("the README does not have CI's command, %q, %v", lines[len(lines)-1], err)
	}
	script, answers := "set -e\n", []fence{} // what each command shall print, and where
	for _, f := range fences {
		script += "echo " + f.at + " >&2\n"
		switch f.kind {
		case "sh":
			script += f.text
		case "console":
			for _, part := range strings.Split("\n"+f.text, "\n$ ")[1:] {
				command, answer, _ := strings.Cut(part, "\n")
				script += fmt.Sprintf("{ %s\n} >%s/%d\n", command, said, len(answers))
				answers = append(answers, fence{f.at, command, answer})
			}
		case "sh source":
			if out, err := exec.Command("sh", "-nc", f.text).CombinedOutput(); err != nil {
				t.Errorf("%s: %v, %s", f.at, err, out)
			}
		case "yaml":
			key := filepath.Join(t.TempDir(), "belfry.key")
			file := filepath.Join(t.TempDir(), "belfry.yml")
			text := strings.ReplaceAll(f.text, "/etc/belfry.key", key)
			if err := errors.Join(os.WriteFile(key, []byte(newKey()), 0o600), os.WriteFile(file, []byte(text), 0o600)); err != nil {
				t.Fatal(err)
			}
			if _, err := parseConfig([]string{"--config=" + file}, nil, io.Discard); err != nil {
				t.Errorf("%s: %v", f.at, err)
			}
		case "ini systemd":
			for line := range strings.Lines(f.text) {
				if !regexp.MustCompile(`^(#.*|\[[A-Z]\w+\]|[A-Z]\w+=\S.*)\n$`).MatchString(line) {
					t.Errorf("%s: systemd takes no %q", f.at, line)
				}
			}
		default:
			t.Errorf("%s: no test knows what to do with ```%s", f.at, f.kind)
		}
	}
	var told lockedBuffer
	inNet(t, []string{"10.0.0.9"}, func() {
		for addr, handler := range map[string]http.HandlerFunc{
			"10.0.0.9:8080": func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("X-Whom", "dkron1") // as a Dkron does
				http.ServeFile(w, r, "testdata/import/dkron.json")
			},
			"10.0.0.9:9000": func(w http.ResponseWriter, r *http.Request) { io.Copy(&told, r.Body) },
		} {
			listener, err := net.Listen("tcp", addr)
			if err != nil {
				t.Error(err)
				return
			}
			server := &http.Server{Handler: handler}
			go server.Serve(listener)
			t.Cleanup(func() { server.Close() })
		}
		cmd := program(t, dir, nil)
		cmd.Path, err = exec.LookPath("unshare")
		cmd.Args = []string{"unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", script}
		cmd.Env = append(cmd.Env, "PATH="+bin+":"+os.Getenv("PATH"))
		overdue := time.AfterFunc(2*time.Minute, func() { cmd.Process.Kill() })
		defer overdue.Stop()
		if out, e := cmd.CombinedOutput(); e != nil {
			t.Errorf("%v, %v; the README's commands print\n%s", err, e, out)
		}

	})
	for i, a := range answers {
		got, _ := os.ReadFile(filepath.Join(said, strconv.Itoa(i)))
		want := strings.ReplaceAll(regexp.QuoteMeta(a.text), "…", ".*")
		if !regexp.MustCompile("^" + want + "$").Match(got) {
			t.Errorf("%s: %s prints\n%s\nwant\n%s", a.at, a.kind, got, a.text)
		}
	}
	if !strings.Contains(told.String(), `"event":"failed"`) {
		t.Errorf("the webhook of the README was told %q", told.String())
	}
}

// TestREADME_Flags: what the README, SECURITY.md and the texts of "belfry help" call a flag is one, and "belfry help"
// prints these texts.
func TestREADME_Flags(t *testing.T) {
	known := map[string]bool{}
	for _, c := range append(subcommands(), subcommand{name: "agent"}) {
		var help strings.Builder
		commandLine(t.Context(), append(strings.Fields(c.name), "-h"), nil, &help, io.Discard)
		for _, m := range regexp.MustCompile(`(?m)^  -([a-z-]+)`).FindAllStringSubmatch(help.String(), -1) {
			known[m[1]] = true
		}
	}
	texts, err := filepath.Glob("web/*.txt")
	if err != nil || len(texts) == 0 {
		t.Fatalf("no texts in web, %v", err)
	}
	for _, name := range append(texts, "README.md", "SECURITY.md") {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if topic, ok := strings.CutSuffix(filepath.Base(name), ".txt"); ok {
			var help strings.Builder
			if status := commandLine(t.Context(), []string{"help", topic}, nil, &help, io.Discard); status != exitOK || help.String() != string(text) {
				t.Errorf("belfry help %s: status %d, and prints %q", topic, status, help.String())
			}
		}
		for _, m := range regexp.MustCompile("(?m)(?:^|[ `(\"\\[])--([a-z][a-z-]+)").FindAllStringSubmatch(string(text), -1) {
			if !known[m[1]] && m[1] != "chown" { // of COPY in a Dockerfile
				t.Errorf("%s: there is no flag --%s", name, m[1])
			}
		}
	}
}

// ---- Rounds of real lives

const (
	roundMax     = 2500 * time.Millisecond // of a life, after its leader is there
	roundPause   = 400 * time.Millisecond  // at most, between two writes of a client
	roundClients = 3                       // that write at the same time, each its own jobs
	roundJobs    = 3                       // of a client
	roundKeep    = 1 << 20                 // executions kept: all
)

// TestRounds_Kill: a server is killed at random moments while clients write and
// jobs fire each second. After each restart nothing that was acknowledged is
// missing, no attempt at a scheduled time has started twice by what the jobs
// themselves wrote down, nothing counts as running that does not run, and every
// due tick has exactly one outcome.
func TestRounds_Kill(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	seed := *roundsSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("repeat it with -run TestRounds_Kill -rounds=%d -rounds.seed=%d", *rounds, seed)
	r := newLives(t, seed)
	for range *rounds {
		r.live()
	}
	r.rest()
	t.Logf("%d log entries, %d executions, %d of them seen to start, %d ticks decided", r.replica.applied.Load(), len(r.ledger.started), len(r.seen), len(r.ledger.decisions))
}

// lives is one data directory through all its servers.
type lives struct {
	t       *testing.T
	dir     string
	rnd     *rand.Rand
	url     string // of a target for http jobs
	replica *store // has applied the same log
	ledger  *ledger
	orphans map[int64]bool // unfinished when the last process was killed
	seen    map[string]bool

	clients []*roundClient

	mu   sync.Mutex
	http []string // evidence of http jobs; guarded by mu
}

// roundClient writes its own jobs and remembers what was acknowledged.
type roundClient struct {
	lives  *lives
	rnd    *rand.Rand
	prefix string
	serial int
	model  map[string]*job // nil: not there
	unsure map[string]*job // what may be there instead, of the last write
	doubt  map[string]bool // the last write got no answer
	ran    []int64         // groups of runs that were acknowledged
}

func newLives(t *testing.T, seed uint64) *lives {
	r := &lives{t: t, dir: t.TempDir(), rnd: rand.New(rand.NewPCG(seed, 0)), ledger: newLedger(), orphans: map[int64]bool{}, seen: map[string]bool{}}
	target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.http = append(r.http, strings.Join([]string{q.Header.Get("Belfry-Execution"), q.Header.Get("Belfry-Scheduled-At"), q.Header.Get("Belfry-Attempt"), q.Header.Get("Belfry-Job")}, " "))
	}))
	t.Cleanup(target.Close)
	r.url = target.URL
	var err error
	if r.replica, err = openStore(simTempDir(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.replica.close() })
	for i := range roundClients {
		r.clients = append(r.clients, &roundClient{lives: r, rnd: rand.New(rand.NewPCG(seed, uint64(i+1))), prefix: fmt.Sprintf("c%d-", i),
			model: map[string]*job{}, unsure: map[string]*job{}, doubt: map[string]bool{}})
	}
	return r
}

func (r *lives) evidence() string { return filepath.Join(r.dir, "evidence") }

func (r *lives) start() *process {
	return startServer(r.t, r.dir, "--executions-keep="+strconv.Itoa(roundKeep), "--timezone=Europe/Berlin")
}

// live is one life: it starts, all is compared, clients write, it is killed.
func (r *lives) live() {
	r.t.Helper()
	p := r.start()
	r.afterRestart(p)
	var writing sync.WaitGroup
	for _, c := range r.clients {
		writing.Go(func() { c.write(p) })
	}
	moment := time.NewTimer(time.Duration(r.rnd.Int64N(int64(roundMax))))
	defer moment.Stop()
	select {
	case <-moment.C:
	case <-p.done:
		r.t.Errorf("the server ended by itself: %v\n%s", p.cmd.ProcessState, &p.log)
	}
	p.kill()
	writing.Wait()
	r.examine()
	if r.t.Failed() {
		r.t.FailNow()
	}
}

// afterRestart expects all that was acknowledged, and an end of all that the
// former process left running.
func (r *lives) afterRestart(p *process) {
	r.t.Helper()
	for _, c := range r.clients {
		c.verify(p)
	}
	p.eventually("end of what the former process ran", func() bool {
		var busy []executionView
		p.must("GET", "/v1/busy", nil, &busy)
		return !slices.ContainsFunc(busy, func(v executionView) bool {
			id, _, _ := strings.Cut(v.ID, "-")
			n, err := strconv.ParseInt(id, 10, 64)
			return err != nil || r.orphans[n]
		})
	})
}

// examine looks into the database of a dead server: its own invariants, the
// log against the ledger, and the evidence of the jobs against both.
func (r *lives) examine() {
	r.t.Helper()
	s, err := openStore(filepath.Join(r.dir, "data"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() {
		if err := s.close(); err != nil {
			r.t.Error(err)
		}
	}()
	if err := s.check(); err != nil {
		r.t.Error(err)
	}
	r.replay(s)
	rows, err := s.unfinishedExecutions()
	if err != nil {
		r.t.Fatal(err)
	}
	r.orphans = map[int64]bool{}
	for _, e := range rows {
		r.orphans[e.ID] = true
	}
	for _, c := range r.clients {
		for _, group := range c.ran {
			if _, ok := r.ledger.started[group]; !ok {
				r.t.Errorf("group %d of a run by hand was acknowledged and is not on record", group)
			}
		}
	}
	r.compareEvidence()
}

// replay has the replica and the ledger follow what the log has since the last
// time. Equal logs must make equal states.
func (r *lives) replay(s *store) {
	r.t.Helper()
	list, err := s.entries(r.replica.applied.Load()+1, 1<<40)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, e := range list {
		if e.Index > s.applied.Load() {
			break
		}
		if err := r.replica.persist(nil, []entry{e}); err != nil {
			r.t.Fatal(err)
		}
		results, err := r.replica.applyUpTo(e.Index)
		if err != nil {
			r.t.Fatal(err)
		}
		if err := r.ledger.observe(r.replica, e, results[0]); err != nil {
			r.t.Error(err)
		}
	}
	got, err := s.dump()
	want, err2 := r.replica.dump()
	if diff := cmp.Diff(want, got); diff != "" || err != nil || err2 != nil {
		r.t.Errorf("the server's state is not what its log makes (-log +server): %v, %v\n%s", err, err2, diff)
	}
}

// compareEvidence expects that what jobs wrote down is on record as it was
// accepted, and that nothing was written down twice.
func (r *lives) compareEvidence() {
	r.t.Helper()
	doc, err := os.ReadFile(r.evidence())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		r.t.Fatal(err)
	}
	r.mu.Lock()
	lines := append(strings.Split(strings.TrimSuffix(string(doc), "\n"), "\n"), r.http...)
	r.mu.Unlock()
	executions, attempts := map[string]bool{}, map[string]bool{}
	for _, line := range lines {
		f := strings.Fields(line)
		if len(f) != 4 {
			if line != "" {
				r.t.Errorf("evidence %q is no line of a job", line)
			}
			continue
		}
		id, err := strconv.ParseInt(strings.TrimSuffix(f[0], "-n1"), 10, 64)
		on, ok := r.ledger.started[id]
		due, err2 := time.Parse(time.RFC3339Nano, f[1])
		if err != nil || err2 != nil || !ok || due.UnixNano() != on.due || f[2] != strconv.Itoa(on.attempt) {
			r.t.Errorf("evidence %q is on record as %+v (%v), %v, %v", line, on, ok, err, err2)
		}
		attempt := fmt.Sprint(on.job, " ", f[1], " ", f[2], " ", on.cause)
		if executions[f[0]] || attempts[attempt] && on.cause == causeTick {
			r.t.Errorf("evidence %q comes twice", line)
		}
		executions[f[0]], attempts[attempt] = true, true
	}
	r.seen = executions
}

// rest lets the last server come to rest with all jobs disabled, and expects
// that nothing is left over.
func (r *lives) rest() {
	r.t.Helper()
	p := r.start()
	r.afterRestart(p)
	for _, c := range r.clients {
		for _, name := range sortedKeys(c.model) {
			if j := c.model[name]; j != nil && !j.Disabled {
				p.must("POST", "/v1/jobs/"+name+"/toggle", nil, nil)
			}
		}
	}
	p.eventually("rest", func() bool {
		var busy []executionView
		p.must("GET", "/v1/busy", nil, &busy)
		return len(busy) == 0
	})
	p.end()
	if got := p.cmd.ProcessState.ExitCode(); got != exitOK {
		r.t.Errorf("exit status %d, want %d\n%s", got, exitOK, &p.log)
	}
	r.examine()
	if err := r.ledger.settled(r.replica, time.Now().UnixNano()); err != nil {
		r.t.Error(err)
	}
}

// write sends writes until the server is gone, with pauses in which jobs fire
// as they are.
func (c *roundClient) write(p *process) {
	for c.writeOne(p) {
		select {
		case <-time.After(time.Duration(c.rnd.Int64N(int64(roundPause)))):
		case <-p.done:
			return
		}
	}
}

// writeOne sends one write and reports whether it was answered.
func (c *roundClient) writeOne(p *process) bool {
	name := c.prefix + strconv.Itoa(c.rnd.IntN(roundJobs))
	have := c.model[name]
	switch n := c.rnd.IntN(20); {
	case have == nil || n < 9:
		return c.change(p, name, "POST", "/v1/jobs", c.randomJob(name))
	case n < 12:
		same := *have
		c.serial++
		same.Metadata = map[string]string{"version": strconv.Itoa(c.serial)}
		return c.change(p, name, "PUT", "/v1/jobs/"+name, &same)
	case n < 14:
		turned := *have
		turned.Disabled = !turned.Disabled
		return c.change(p, name, "POST", "/v1/jobs/"+name+"/toggle", &turned)
	case n < 15:
		return c.change(p, name, "DELETE", "/v1/jobs/"+name, nil)
	}
	return c.run(p, name)
}

// change sends a write after which a job is to be as given.
func (c *roundClient) change(p *process, name, method, path string, after *job) bool {
	c.unsure[name], c.doubt[name] = after, true
	var body any
	if method != "DELETE" && !strings.HasSuffix(path, "/toggle") {
		body = after
	}
	status, text := p.send(method, path, body, nil)
	switch {
	case status == 0:
		return false
	case status >= 200 && status < 300:
		c.model[name] = after
	case status == http.StatusConflict && method == "DELETE": // it has children
	default:
		p.t.Errorf("%s %s %+v: status %d, %s", method, path, after, status, text)
		return false
	}
	c.doubt[name] = false
	return true
}

func (c *roundClient) run(p *process, name string) bool {
	req, err := http.NewRequest("POST", p.url+"/v1/jobs/"+name+"/run", nil)
	if err != nil {
		p.t.Error(err)
		return false
	}
	res, err := client.Do(req)
	if err != nil {
		return false
	}
	defer res.Body.Close()
	switch text, _ := io.ReadAll(res.Body); res.StatusCode {
	case http.StatusAccepted:
		group, err := strconv.ParseInt(res.Header.Get("Belfry-Group"), 10, 64)
		if err != nil {
			p.t.Error(err)
		}
		c.ran = append(c.ran, group)
	case http.StatusConflict: // disabled, or forbidden for now
	default:
		p.t.Errorf("run %s: status %d, %s", name, res.StatusCode, text)
	}
	return true
}

func (c *roundClient) randomJob(name string) *job {
	c.serial++
	note := `echo "$BELFRY_EXECUTION $BELFRY_SCHEDULED_AT $BELFRY_ATTEMPT $BELFRY_JOB" >> ` + c.lives.evidence()
	j := shellJob(name, pick(c.rnd, "@every 1s", "* * * * * *", "*/2 * * * * *", "@every 2s"), note+pick(c.rnd, "", "; sleep 0.4", "; sleep 3", "; exit 1"))
	if c.rnd.IntN(3) == 0 {
		j.Executor, j.ExecutorConfig = executorHTTP, map[string]string{"method": "GET", "url": c.lives.url}
	}
	j.Metadata = map[string]string{"version": strconv.Itoa(c.serial)}
	j.Concurrency = pick(c.rnd, concurrencyAllow, concurrencyForbid)
	j.Retries = pick[uint](c.rnd, 0, 1, 2)
	if first := c.prefix + "0"; name != first && c.model[first] != nil && !c.doubt[first] && c.rnd.IntN(6) == 0 {
		j.ParentJob, j.Schedule = first, ""
	}
	return j
}

// verify compares the jobs of the client with what it was told.
func (c *roundClient) verify(p *process) {
	for i := range roundJobs {
		name := c.prefix + strconv.Itoa(i)
		var have *job
		status, text := p.get("/v1/jobs/"+name, &have)
		if status != http.StatusOK && status != http.StatusNotFound {
			p.t.Fatalf("GET %s: status %d, %s", name, status, text)
		}
		switch {
		case sameJob(have, c.model[name]):
		case c.doubt[name] && sameJob(have, c.unsure[name]):
			c.model[name] = c.unsure[name]
		default:
			p.t.Errorf("after a restart %s is %s, want %+v, or (in doubt: %v) %+v", name, text, c.model[name], c.doubt[name], c.unsure[name])
		}
		c.doubt[name] = false
	}
}

// sameJob compares the job that the API shows with a definition.
func sameJob(have, want *job) bool {
	if have != nil {
		have.dropRecord()
	}
	return cmp.Equal(have, want, cmpopts.EquateEmpty())
}

// ---- Whole servers in one bubble

var (
	serversSeed  = flag.Uint64("servers.seed", 0, "the one seed of the simulation of whole servers; 0: see the next")
	serversSeeds = flag.Int("servers.seeds", 0, "seeds that it takes; 0: a few whose faults are the rarest")
	serversFirst = flag.Uint64("servers.first", 1, "the first of them")
	serversTrace = flag.Bool("servers.trace", false, "print all that happens in it")
)

// TestSimulation_Servers runs whole servers, made as main makes them, through
// crashes, pauses, cuts, slow disks and leaves, with clients that write all the
// time. With the race detector the fixed seeds take two minutes on two cores.
// As many seeds as there are faults must reach all rareStates.
func TestSimulation_Servers(t *testing.T) {
	if testing.Short() {
		t.Skip("takes more than a minute")
	}
	var seeds []uint64
	switch {
	case *serversSeed != 0:
		seeds = []uint64{*serversSeed}
	case *serversSeeds == 0:
		seeds = []uint64{3, 14, 19} // each begins with another of bubbleFaults
	default:
		for i := range *serversSeeds {
			seeds = append(seeds, *serversFirst+uint64(i))
		}
	}
	t.Setenv("GODEBUG", "tlsmlkem=0") // a third of a handshake
	var mu sync.Mutex                 // guards reached
	reached := map[string]int{}
	percent := debug.SetGCPercent(1_000) // a tenth cheaper
	t.Cleanup(func() {
		debug.SetGCPercent(percent)
		for _, what := range sortedKeys(reached) {
			t.Logf("%5d of %d seeds reached %s", reached[what], len(seeds), what)
		}
		for _, what := range rareStates {
			if reached[what] == 0 && len(seeds) >= len(bubbleFaults) && !t.Failed() {
				t.Errorf("no seed reached %s", what)
			}
		}
	})
	for _, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			b := runBubble(t, seed)
			mu.Lock()
			defer mu.Unlock()
			for what := range b.reached {
				reached[what]++
			}
		})
	}
}

// A node that stands still gets few of the runs for which some node is chosen, however many there are.
func TestSimulation_StandsStill(t *testing.T) {
	who := map[string]func(b *bubble) *bubbleNode{
		"Agent":  func(b *bubble) *bubbleNode { return b.nodes[b.plan.servers] },
		"Leader": (*bubble).leader,
		"Follower": func(b *bubble) *bubbleNode {
			return b.servers()[(slices.Index(b.servers(), b.leader())+1)%b.plan.servers]
		},
	}
	for _, name := range sortedKeys(who) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testBubble(t, &bubblePlan{servers: 3, agents: 2, clients: 1}, func(b *bubble) {
				b.together(20, func(c *bubbleClient, i int) { // 20 runs a second
					j := shellJob(tickJobName(i), "@every 1s", "0 0")
					j.Tags = map[string]string{"role": "x:1"}
					c.write("POST", "/v1/jobs", "make "+j.Name, c.doc(j))
				})
				b.pass(calmBefore + 700*time.Millisecond)
				n := who[name](b)
				b.pause(n)
				b.pass(10 * time.Second)
				t.Logf("%d runs were given to it, of %d", n.given, len(b.ledger.started))
				if len(b.ledger.started) < 200 {
					b.fail("only %d runs in all", len(b.ledger.started))
				}
				b.heal()
				b.pass(5 * time.Second)
			})
		})
	}
}

// Entries that take long on a link arrive once.
func TestSimulation_SlowLink(t *testing.T) {
	testBubble(t, &bubblePlan{servers: 3, agents: 0, clients: 1}, func(b *bubble) {
		b.hub.mu.Lock()
		clear(b.hub.carried) // 1 MiB takes more than a second
		b.hub.mu.Unlock()
		big := strings.Repeat("x", 100_000)
		b.together(20, func(c *bubbleClient, i int) {
			j := c.job(fmt.Sprint("big-", i), big)
			c.write("POST", "/v1/jobs", j.Name, c.doc(j))
		})
		leader := b.leader()
		if leader == nil {
			b.fail("a slow link has ended the leadership")
			return
		}
		b.until("all at the others", 60*time.Second, func() bool {
			return !slices.ContainsFunc(b.servers(), func(n *bubbleNode) bool {
				return n.driver() == nil || n.driver().store.applied.Load() < leader.driver().status().Last
			})
		})
		list, err := leader.driver().store.entries(1, 1<<30)
		if err != nil {
			b.fail("%v", err)
		}
		size := 0
		for _, e := range list {
			size += len(e.Data)
		}
		for _, n := range b.servers() {
			b.hub.mu.Lock()
			carried := b.hub.carried[link{leader.host, n.host}]
			b.hub.mu.Unlock()
			t.Logf("%d bytes of log to %s in %d bytes", size, n.name, carried)
			if most := 2 * size; n != leader && carried > most { // base64 takes a third more, and answers go that way too
				b.fail("%d bytes were sent to %s, want at most %d", carried, n.name, most)
			}
		}
	})
}

// testBubble has something happen to a healthy cluster.
func testBubble(t *testing.T, plan *bubblePlan, do func(b *bubble)) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, 1, plan)
		b.begin()
		do(b)
		done := make(chan struct{})
		go func() { b.work.Wait(); close(done) }()
		b.shut(done)
		if err := b.replica.close(); err != nil {
			t.Error(err)
		}
		b.report()
	})
}

// together has n clients make a call each, and waits for them.
func (b *bubble) together(n int, call func(c *bubbleClient, i int)) {
	var done atomic.Int64
	for i := range n {
		b.newClient(func(c *bubbleClient) {
			call(c, i)
			done.Add(1)
		})
	}
	b.until("end of the calls", 90*time.Second, func() bool { return done.Load() == int64(n) })
}

// runBubble lives one life, and says all about it if it went wrong.
func runBubble(t *testing.T, seed uint64) (b *bubble) {
	began := time.Now()
	synctest.Test(t, func(t *testing.T) {
		b = newBubble(t, seed, nil)
		b.live()
		if err := b.replica.close(); err != nil {
			t.Error(err)
		}
		if b.failed != nil {
			t.Logf("repeat it with -run '^TestSimulation_Servers$' -servers.seed=%d", seed)
		}
		b.report()
	})
	t.Logf("seed %d: %d servers, %d events, trace %x, %s, reached %s", seed, b.plan.servers, b.hub.trace.events, b.hub.trace.hash,
		time.Since(began).Round(time.Millisecond), strings.Join(sortedKeys(b.reached), "; "))
	return b
}

// bubbleInbox is the address of the receiver of notices in a bubble.
const bubbleInbox = "10.0.9.9:80"

// noticeLedger is the receiver of notices, and what they should be according to the log. Of every ten seconds it is down
// for two, and now and then it hangs.
type noticeLedger struct {
	b      *bubble
	server *http.Server

	mu       sync.Mutex
	got      map[int64]notice // by the id in the key; guarded by mu
	attempts map[int64]int    // guarded by mu

	made     map[int64]noticeRow
	lost     map[int64]bool
	failures map[int64]int64 // broken of jobs, after the last entry
}

func newNoticeLedger(b *bubble) *noticeLedger {
	l := &noticeLedger{b: b, got: map[int64]notice{}, attempts: map[int64]int{}, made: map[int64]noticeRow{}, lost: map[int64]bool{}, failures: map[int64]int64{}}
	door, err := b.hub.listen(&life{wires: map[*wire]bool{}}, bubbleInbox)
	if err != nil {
		b.t.Fatal(err)
	}
	l.server = &http.Server{Handler: l}
	go l.server.Serve(door)
	return l
}

func (l *noticeLedger) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var n notice
	_, text, _ := strings.Cut(r.Header.Get("Idempotency-Key"), "-")
	id, err := strconv.ParseInt(text, 10, 64)
	if err := errors.Join(err, json.NewDecoder(r.Body).Decode(&n)); err != nil {
		l.b.t.Errorf("a notice of key %q: %v", r.Header.Get("Idempotency-Key"), err)
	}
	l.mu.Lock()
	l.attempts[id]++
	hangs := l.attempts[id] == 1 && id>>keyBits%7 == 0
	l.mu.Unlock()
	switch {
	case time.Since(bubbleEpoch)%(10*time.Second) < 2*time.Second:
		w.WriteHeader(http.StatusServiceUnavailable)
		l.b.reach("a notice for a receiver that is down")
		return
	case hangs:
		l.b.reach("a notice for a receiver that hangs")
		<-r.Context().Done()
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, twice := l.got[id]; twice {
		l.b.reach("a notice that was delivered twice")
	}
	l.got[id] = n
}

// observe follows an entry of the log, which s has applied: it makes notices of what it is about, and of nothing else;
// and none is removed that the receiver does not have, unless it is counted as lost.
func (l *noticeLedger) observe(s *store, e entry, res applied) error {
	var errs []error
	wrong := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("entry %d: "+format, append([]any{e.Index}, args...)...))
	}
	rows, err := s.notices(key(e.Index, 0)-1, noticesMax)
	if err != nil || e.Kind != entryCommand {
		return err
	}
	c, err := decodeCommand(e.Data)
	if err != nil {
		return err
	}
	told := map[string]map[int64]int{} // event → job → notices
	for _, event := range slices.Concat(jobEvents, clusterEvents) {
		told[event] = map[int64]int{}
	}
	for _, row := range rows {
		l.made[row.ID] = row
		if !strings.Contains(row.Doc, `"reason":"it is disabled: `) {
			told[row.Event][row.JobID]++
		}
	}
	failures := map[int64]int64{}
	err = s.viewEach("SELECT job, broken FROM job_state", nil, func(scan scanner) error {
		var job, n int64
		err := scan(&job, &n)
		failures[job] = n
		return err
	})
	if err != nil {
		return err
	}
	for job, n := range failures {
		was := l.failures[job]
		if (was == 0 && n > 0) != (told[eventFailed][job] > 0) {
			wrong("job %d: broken was %d and is %d, and %d notices say so", job, was, n, told[eventFailed][job])
		}
		if recovered := was > 0 && n == 0; recovered != (told[eventRecovered][job] > 0) {
			wrong("job %d: broken was %d and is %d, and %d notices say that it recovered", job, was, n, told[eventRecovered][job])
		}
	}
	l.failures = failures
	lost, missed := map[int64]bool{}, map[int64]bool{} // executions that are, jobs that did
	for _, r := range c.Finish {
		if r.Outcome == outcomeLost {
			lost[r.Execution] = true
		}
	}
	for i, d := range c.Consume {
		if res.Err == nil && !res.repeated() && res.Accepted[i] && d.Outcome == outcomeMissed && d.Pending == 0 {
			if missed[d.Job] = true; told[eventMissed][d.Job] != 1 {
				wrong("job %d missed ticks, and %d notices say so", d.Job, told[eventMissed][d.Job])
			}
		}
	}
	for _, row := range rows {
		var n notice
		if err := json.Unmarshal([]byte(row.Doc), &n); err != nil {
			return err
		}
		id, _, _ := strings.Cut(n.Execution, "-")
		execution, _ := strconv.ParseInt(id, 10, 64)
		switch row.Event {
		case eventLost:
			if !lost[execution] {
				wrong("a notice of %s, which is not lost", n.Execution)
			}
			delete(lost, execution)
		case eventMissed:
			if !missed[row.JobID] && c.Finish == nil && !strings.Contains(n.Reason, noNodeReason) && !strings.Contains(n.Reason, "newest") {
				wrong("a notice of ticks of job %d, which missed none: %+v", row.JobID, n)
			}
		}
	}
	for id := range lost {
		if row, err := s.execution(id); err == nil && row.Outcome == outcomeLost && row.Finished == c.Now {
			wrong("execution %d is lost, and no notice says so", id)
		}
	}
	if c.Delivered != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, id := range c.Delivered.Taken {
			if _, ok := l.got[id]; !ok {
				wrong("notice %d is removed, and the receiver does not have it", id)
			}
		}
		for _, id := range c.Delivered.Lost {
			l.lost[id] = true
			l.b.reach("a notice that was given up")
		}
	}
	return errors.Join(errs...)
}

// settled expects that all notices were delivered, and no others.
func (l *noticeLedger) settled() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for id, row := range l.made {
		if n, ok := l.got[id]; !l.lost[id] && (!ok || n.Event != row.Event) {
			errs = append(errs, fmt.Errorf("the notice %+v was not delivered, or as %+v", row, n))
		}
		l.b.reach("a notice of " + row.Event)
	}
	for id, n := range l.got {
		if _, ok := l.made[id]; !ok {
			errs = append(errs, fmt.Errorf("notice %d is in no log: %+v", id, n))
		}
	}
	return errors.Join(errs...)
}

// report says all about a life that went wrong.
func (b *bubble) report() {
	if b.failed == nil {
		return
	}
	for _, n := range b.nodes {
		b.t.Logf("the last log of %s:\n%s", n.name, n.life.log.tail(30))
	}
	b.t.Logf("what happened last:\n%s", strings.Join(b.hub.trace.last(), "\n"))
	b.t.Logf("what was done:\n%s", strings.Join(b.history, "\n"))
	b.t.Errorf("seed %d: %v", b.seed, b.failed)
}

// A hub is the network of a bubble. Nodes and clients are hosts on it; what one
// writes to another is a packet on the link between the two, which is slow, loses
// packets (they come later, as TCP sends them again) or is cut in one direction
// (they come when it is whole again, if somebody still waits). synctest gives
// time and no order, so one goroutine moves all packets, see pass: each quantum it
// releases what is due, one wire after the other. What becomes of a packet is
// chance, but always the same one for the same packet: if the runtime makes a
// small difference, the rest of a life stays as it was.
type hub struct {
	seed uint64        // fixed
	kick chan struct{} // something was sent; holds one

	mu      sync.Mutex // guards all that follows, and the wires
	doors   map[string]*door
	free    map[link]time.Time // when a link has carried what it was given
	serials map[link]int       // wires that were made of it
	carried map[link]int       // bytes
	cut     map[link]bool
	flip    map[link]func() // a bit of the next large packet flips, and this is called
	dark    map[string]bool // hosts without power
	sent    []*packet       // since the last pass
	flying  []*packet       // by due time
	delay   time.Duration
	jitter  time.Duration
	loss    float64 // share of packets that come a retransmission later
	rate    float64 // bytes a second of each link
	trace   trace
}

const (
	quantum     = time.Millisecond
	linkRate    = 1e6       // bytes a second
	linkWindow  = 256 << 10 // written and not yet read
	linkRetries = 200 * time.Millisecond
	linkFlips   = 4 << 10 // bytes of a packet in which a bit may flip
)

// A link is the way from one host to another.
type link struct{ from, to string }

type packet struct {
	kind    byte // one of "SAFRD": open, accepted, end, refused or reset, data
	at, due time.Time
	link    link
	serial  int // of the wire
	number  int // in its direction
	to      *wire
	data    []byte
}

// trace is the running hash of all that happened, and the last of it.
type trace struct {
	hash   uint64
	events int
	tail   [40]traced
}

// A traced event is a packet that arrived, or a text.
type traced struct {
	at     time.Duration
	packet *packet
	text   string
}

func (e traced) String() string {
	if p := e.packet; p != nil {
		e.text = fmt.Sprintf("%s>%s %d.%d %c %d", p.link.from, p.link.to, p.serial, p.number, p.kind, len(p.data))
	}
	return fmt.Sprintf("%9.3f %s", e.at.Seconds(), e.text)
}

func (t *trace) add(e traced) {
	e.at = time.Since(bubbleEpoch)
	t.hash = mixText(mix(t.hash, uint64(e.at)), e.text)
	if p := e.packet; p != nil {
		t.hash = p.mix(mix(t.hash, uint64(len(p.data))))
	}
	t.tail[t.events%len(t.tail)] = e
	t.events++
	if *serversTrace {
		fmt.Println(e)
	}
}

// last is the tail, the newest last.
func (t *trace) last() (lines []string) {
	for i := max(0, t.events-len(t.tail)); i < t.events; i++ {
		lines = append(lines, t.tail[i%len(t.tail)].String())
	}
	return lines
}

// mix adds to a hash which packet it is.
func (p *packet) mix(h uint64) uint64 {
	return mix(mix(mix(mixText(mixText(h, p.link.from), p.link.to), uint64(p.serial)), uint64(p.number)), uint64(p.kind))
}

func mixText(h uint64, text string) uint64 {
	for i := range len(text) {
		h = mix(h, uint64(text[i]))
	}
	return mix(h, 0)
}

// syncTime is what a sync of a healthy disk takes.
const syncTime = 1729 * time.Microsecond

// bubbleEpoch is when time begins in a bubble.
var bubbleEpoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// A wire is one end of a connection.
type wire struct {
	hub    *hub
	life   *life // whose it is; nil: a client's
	link   link  // of what it writes
	serial int
	peer   *wire
	addr   [2]net.Addr // own, other

	// Guarded by hub.mu.
	changed   *sync.Cond
	open      bool
	closed    bool
	err       error
	in        []byte
	ended     bool            // nothing comes after in
	number    int             // of the next packet that it sends
	expected  int             // the same of its peer
	early     map[int]*packet // that came before the one expected
	unread    int             // bytes that the peer has not read
	deadlines [2]time.Time    // to read, to write
	timers    [2]*time.Timer
}

// A door is a listener.
type door struct {
	hub     *hub
	life    *life
	addr    net.Addr
	changed *sync.Cond // hub.mu
	queue   []*wire
	closed  bool
}

func newHub(seed uint64) *hub {
	return &hub{seed: seed, kick: make(chan struct{}, 1), doors: map[string]*door{}, free: map[link]time.Time{}, serials: map[link]int{}, carried: map[link]int{},
		cut: map[link]bool{}, flip: map[link]func(){}, dark: map[string]bool{}, rate: linkRate}
}

func (h *hub) newWire(l link, life *life, own, other string) *wire {
	w := &wire{hub: h, life: life, link: l, changed: sync.NewCond(&h.mu), early: map[int]*packet{}}
	w.addr = [2]net.Addr{bubbleAddr(own), bubbleAddr(other)}
	return w
}

func bubbleAddr(addr string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr)) }

func hostOf(addr string) string { return netip.MustParseAddrPort(addr).Addr().String() }

// listen opens a door of a life.
func (h *hub) listen(l *life, addr string) (net.Listener, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.doors[addr] != nil {
		return nil, syscall.EADDRINUSE
	}
	d := &door{hub: h, life: l, addr: bubbleAddr(addr), changed: sync.NewCond(&h.mu)}
	h.doors[addr] = d
	return d, nil
}

func (d *door) Accept() (net.Conn, error) {
	d.hub.mu.Lock()
	defer d.hub.mu.Unlock()
	for len(d.queue) == 0 && !d.closed {
		d.changed.Wait()
	}
	if d.closed {
		return nil, net.ErrClosed
	}
	w := d.queue[0]
	d.queue = d.queue[1:]
	return w, nil
}

func (d *door) Addr() net.Addr { return d.addr }

func (d *door) Close() error {
	d.hub.mu.Lock()
	defer d.hub.mu.Unlock()
	d.closeLocked()
	return nil
}

func (d *door) closeLocked() {
	if d.closed {
		return
	}
	d.closed = true
	delete(d.hub.doors, d.addr.String())
	for _, w := range d.queue {
		w.closeLocked()
	}
	d.changed.Broadcast()
}

// dial connects a host to an address. life is nil for a client.
func (h *hub) dial(ctx context.Context, life *life, host, addr string) (net.Conn, error) {
	l := link{host, hostOf(addr)}
	h.mu.Lock()
	defer h.mu.Unlock()
	w := h.newWire(l, life, host+":1", addr)
	w.peer = h.newWire(link{l.to, l.from}, nil, addr, host+":1")
	w.peer.peer = w
	h.serials[l]++
	w.serial, w.peer.serial = h.serials[l], -h.serials[l]
	if life != nil {
		if life.dead.Load() {
			return nil, errDead
		}
		life.wires[w] = true
	}
	defer context.AfterFunc(ctx, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		w.changed.Broadcast()
	})()
	h.sendLocked(w, 'S', nil)
	for !w.open && w.err == nil && ctx.Err() == nil {
		w.changed.Wait()
	}
	if !w.open {
		w.closeLocked()
		return nil, orElse(w.err, ctx.Err())
	}
	return w, nil
}

// sendLocked hands a packet over to the link that w writes to.
func (h *hub) sendLocked(w *wire, kind byte, data []byte) {
	h.sent = append(h.sent, &packet{kind: kind, at: time.Now(), link: w.link, serial: w.serial, number: w.number, to: w.peer, data: data})
	w.number++
	select {
	case h.kick <- struct{}{}:
	default:
	}
}

func (w *wire) Write(p []byte) (n int, err error) {
	h := w.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(p) > 0 {
		for w.unread >= linkWindow && w.err == nil && !w.closed && !w.late(1) {
			w.changed.Wait()
		}
		switch {
		case w.closed:
			return n, net.ErrClosed
		case w.err != nil:
			return n, w.err
		case w.late(1):
			return n, os.ErrDeadlineExceeded
		}
		part := p[:min(len(p), linkWindow-w.unread)]
		h.sendLocked(w, 'D', bytes.Clone(part))
		w.unread += len(part)
		n, p = n+len(part), p[len(part):]
	}
	return n, nil
}

func (w *wire) Read(p []byte) (int, error) {
	h := w.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(w.in) == 0 && !w.ended && w.err == nil && !w.closed && !w.late(0) {
		w.changed.Wait()
	}
	switch {
	case w.closed:
		return 0, net.ErrClosed
	case w.late(0):
		return 0, os.ErrDeadlineExceeded
	case len(w.in) > 0:
		n := copy(p, w.in)
		w.in = w.in[n:]
		w.peer.unread -= n
		w.peer.changed.Broadcast()
		return n, nil
	case w.err != nil:
		return 0, w.err
	}
	return 0, io.EOF
}

func (w *wire) Close() error {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	w.closeLocked()
	return nil
}

func (w *wire) closeLocked() {
	if w.closed {
		return
	}
	w.closed = true
	if w.life != nil && !w.life.dead.Load() { // else its peer has not heard of it yet
		delete(w.life.wires, w)
	}
	for i := range w.timers {
		if w.timers[i] != nil {
			w.timers[i].Stop()
		}
	}
	if w.err == nil {
		w.hub.sendLocked(w, 'F', nil)
	}
	w.changed.Broadcast()
}

func (w *wire) LocalAddr() net.Addr  { return w.addr[0] }
func (w *wire) RemoteAddr() net.Addr { return w.addr[1] }

func (w *wire) late(i int) bool {
	return !w.deadlines[i].IsZero() && !time.Now().Before(w.deadlines[i])
}

func (w *wire) SetDeadline(t time.Time) error {
	return errors.Join(w.SetReadDeadline(t), w.SetWriteDeadline(t))
}
func (w *wire) SetReadDeadline(t time.Time) error  { return w.setDeadline(0, t) }
func (w *wire) SetWriteDeadline(t time.Time) error { return w.setDeadline(1, t) }

func (w *wire) setDeadline(i int, t time.Time) error {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	if w.closed {
		return net.ErrClosed
	}
	if w.timers[i] != nil {
		w.timers[i].Stop()
	}
	w.deadlines[i] = t
	if left := time.Until(t); !t.IsZero() && left > 0 {
		w.timers[i] = time.AfterFunc(left, func() {
			w.hub.mu.Lock()
			defer w.hub.mu.Unlock()
			w.changed.Broadcast()
		})
	}
	w.changed.Broadcast()
	return nil
}

// breakLocked ends a wire as a reset does.
func (w *wire) breakLocked(err error) {
	if w.err == nil {
		w.err = err
	}
	w.changed.Broadcast()
}

// wait returns when there may be something to do, at the next quantum or later,
// but not after until.
func (h *hub) wait(until time.Time) {
	h.mu.Lock()
	if len(h.flying) > 0 && h.flying[0].due.Before(until) {
		until = h.flying[0].due
	}
	h.mu.Unlock()
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-h.kick:
	}
	now := time.Now()
	time.Sleep(now.Truncate(quantum).Add(quantum).Sub(now))
	synctest.Wait()
}

// pass moves packets. Everybody else stands still when it is called.
func (h *hub) pass() {
	select {
	case <-h.kick:
	default:
	}
	h.mu.Lock()
	now := time.Now()
	slices.SortStableFunc(h.sent, func(a, b *packet) int {
		return stdcmp.Or(a.at.Compare(b.at), strings.Compare(a.link.from, b.link.from), strings.Compare(a.link.to, b.link.to), stdcmp.Compare(a.serial, b.serial), stdcmp.Compare(a.number, b.number))
	})
	for _, p := range h.sent {
		h.launch(p, now)
	}
	h.sent = nil
	due := h.land(now)
	h.mu.Unlock()
	for _, list := range due {
		h.mu.Lock()
		for _, p := range list {
			h.trace.add(traced{packet: p})
			h.arrive(p)
		}
		h.mu.Unlock()
		synctest.Wait()
	}
}

// chance is that of a packet.
func (h *hub) chance(p *packet) *rand.Rand {
	return rand.New(rand.NewPCG(h.seed, p.mix(0)))
}

// launch decides when a packet arrives.
func (h *hub) launch(p *packet, now time.Time) {
	begin := now
	if free := h.free[p.link]; free.After(begin) {
		begin = free
	}
	end := begin.Add(time.Duration(float64(len(p.data)) / h.rate * float64(time.Second)))
	h.free[p.link] = end
	h.carried[p.link] += len(p.data)
	p.due = end.Add(h.delay)
	rnd := h.chance(p)
	if flipped := h.flip[p.link]; flipped != nil && len(p.data) >= linkFlips {
		p.data[rnd.IntN(len(p.data))] ^= 1 << rnd.IntN(8)
		delete(h.flip, p.link)
		flipped()
	}
	if h.jitter > 0 {
		p.due = p.due.Add(time.Duration(rnd.Int64N(int64(h.jitter))))
	}
	for h.loss > 0 && rnd.Float64() < h.loss {
		p.due = p.due.Add(linkRetries)
	}
	h.fly(p)
}

// fly puts a packet among those under way, after all that are due with it.
func (h *hub) fly(p *packet) {
	i := sort.Search(len(h.flying), func(i int) bool { return h.flying[i].due.After(p.due) })
	h.flying = slices.Insert(h.flying, i, p)
}

// land takes what is due out of flying, by wires in an order of chance. What a
// cut link holds is tried again; a new connection is not.
func (h *hub) land(now time.Time) (due [][]*packet) {
	n := sort.Search(len(h.flying), func(i int) bool { return h.flying[i].due.After(now) })
	ready := slices.Clone(h.flying[:n])
	h.flying = slices.Delete(h.flying, 0, n)
	index := map[*wire]int{}
	for _, p := range ready {
		if h.cut[p.link] || h.dark[p.link.to] {
			if p.kind != 'S' {
				p.due = now.Add(linkRetries)
				h.fly(p)
			}
			continue
		}
		i, ok := index[p.to]
		if !ok {
			i, due = len(due), append(due, nil)
			index[p.to] = i
		}
		due[i] = append(due[i], p)
	}
	slices.SortStableFunc(due, func(a, b []*packet) int { return stdcmp.Compare(h.chance(a[0]).Uint64(), h.chance(b[0]).Uint64()) })
	return due
}

// arrive has a packet arrive, and those that had to wait for it.
func (h *hub) arrive(p *packet) {
	w := p.to
	if p.kind == 'R' {
		w.breakLocked(syscall.ECONNRESET)
		return
	}
	w.early[p.number] = p
	for p = w.early[w.expected]; p != nil; p = w.early[w.expected] {
		delete(w.early, w.expected)
		w.expected++
		h.take(w, p)
	}
}

func (h *hub) take(w *wire, p *packet) {
	switch {
	case p.kind == 'S' && h.doors[w.addr[0].String()] != nil:
		d := h.doors[w.addr[0].String()]
		w.life = d.life
		w.life.wires[w] = true
		w.open = true
		d.queue = append(d.queue, w)
		d.changed.Broadcast()
		h.sendLocked(w, 'A', nil)
	case p.kind == 'S' || w.closed || w.err != nil:
		if p.kind != 'F' {
			h.resetLocked(w)
		}
	case p.kind == 'A':
		w.open = true
	case p.kind == 'F':
		w.ended = true
	default:
		w.in = append(w.in, p.data...)
	}
	w.changed.Broadcast()
}

// resetLocked has the other end of a wire break.
func (h *hub) resetLocked(w *wire) {
	h.sent = append(h.sent, &packet{kind: 'R', at: time.Now(), link: w.link, serial: w.serial, number: w.number, to: w.peer})
}

// die ends all that a life has to do with the network. Without power nobody
// hears of it until there is power again.
func (h *hub) die(l *life, power bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l.dead.Store(true)
	close(l.gone)
	h.dark[l.node.host] = power
	for _, addr := range sortedKeys(h.doors) {
		if h.doors[addr].life == l {
			h.doors[addr].closeLocked()
		}
	}
	for w := range l.wires {
		w.breakLocked(errDead)
	}
	if !power {
		h.forgetLocked(l)
	}
}

// forgetLocked says that nobody knows the connections of a life any more.
func (h *hub) forgetLocked(l *life) {
	for w := range l.wires {
		h.resetLocked(w)
	}
	clear(l.wires)
}

// light gives a host its power back.
func (h *hub) light(n *bubbleNode) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.dark, n.host)
	if n.life != nil && n.life.dead.Load() {
		h.forgetLocked(n.life)
	}
}

// errDead is what a process meets that has been killed and does not know it.
var errDead = errors.New("this process is dead")

// A bubbleNode is a machine on which one node is started again and again.
type bubbleNode struct {
	b      *bubble
	name   string
	host   string // its address
	server bool
	args   []string
	limit  int // executions at once; 0: any number

	// Owned by the goroutine of the bubble.
	dir    string
	life   *life // the latest
	lives  int
	latest atomic.Pointer[life] // life, for clients
	sync   atomic.Int64         // nanoseconds that each sync of its disk takes
	apply  atomic.Int64         // the same of each other transaction
	flip   bool                 // the next power cut flips a bit of what was not synced
	given  int                  // runs that it was chosen for while it stands still
	paused atomic.Bool          // its disk does nothing, and nobody hears of it

	unreadable atomic.Int32 // reads of its database that are to fail once it leads
	steady     time.Time    // since when all can talk to it and it runs; zero: they cannot
	begun      time.Time    // when its process was started
	stands     time.Time    // since when it stands still; zero: it does not
}

// A life is one process of a node. One that was killed is a zombie for a while:
// its goroutines end, but nobody hears of them and what they write is lost.
type life struct {
	node     *bubbleNode
	number   int
	dir      string
	stop     context.CancelFunc
	quiet    bool          // it was told to stop
	leaving  bool          // it was told to leave
	followed bool          // somebody has seen that it ended
	compared uint64        // log index up to which its log was compared
	gone     chan struct{} // closed when it is killed
	ended    chan struct{} // closed when it has ended, by err
	err      error
	log      lockedBuffer
	parts    *parts // nil: not made yet
	wires    map[*wire]bool
	dead     atomic.Bool
	unread   atomic.Bool             // a read failed
	busy     atomic.Int64            // since when its writer is at the disk, in nanoseconds; 0: it is not
	synced   atomic.Pointer[walMark] // how far the log was written when it was last synced

	// What check has seen, owned by the goroutine of the bubble.
	applied uint64
	goal    uint64 // a log index that it has to apply soon
	term    uint64
}

// A walMark is how much of a write-ahead log a power cut leaves.
type walMark struct {
	salt   [8]byte
	frames uint32
}

// readWAL returns how far the write-ahead log of a database is written, and how
// many of its frames are in the database itself, for which they were synced. It
// stands in the header of the shared memory file (see walIndexHdr in wal.c).
func readWAL(dir string) (written walMark, copied uint32) {
	f, err := os.Open(filepath.Join(dir, "belfry.db-shm"))
	if err != nil {
		return written, 0
	}
	defer f.Close()
	head := make([]byte, 100)
	if _, err := io.ReadFull(f, head); err != nil {
		return written, 0
	}
	copy(written.salt[:], head[32:40])
	written.frames = binary.NativeEndian.Uint32(head[16:])
	return written, binary.NativeEndian.Uint32(head[96:])
}

const (
	walHeader = 32
	walFrame  = 24 + 4096
)

// disk is the disk of a life: each sync takes its time, and what was written
// since the last one is gone when the power is.
func (l *life) disk(durable bool, tx func() error) error {
	since := time.Now()
	l.busy.Store(since.UnixNano())
	defer l.busy.Store(0)
	takes := &l.node.apply
	if durable {
		takes = &l.node.sync
	}
	for (l.node.paused.Load() || time.Since(since) < time.Duration(takes.Load())) && !l.dead.Load() {
		time.Sleep(10 * time.Millisecond)
	}
	if l.dead.Load() {
		return errDead
	}
	err := tx()
	if durable {
		l.sync()
	}
	return err
}

// failReads has what a server reads of its database pass through a driver that can fail.
func (l *life) failReads(s *store) error {
	d := &failingDriver{l, s.pool.Driver(), dsn(s.path, "query_only(1)")}
	if err := s.pool.Close(); err != nil {
		return err
	}
	clear(s.prepared)
	s.pool = sql.OpenDB(d)
	s.pool.SetMaxOpenConns(readerConns)
	s.pool.SetMaxIdleConns(readerConns)
	return nil
}

// A failingDriver fails when its server leads and is to be unreadable.
type failingDriver struct {
	life  *life
	inner driver.Driver
	name  string
}

type failingConn struct {
	driver.Conn
	life *life
}

type failingStmt struct {
	driver.Stmt
	life *life
}

func (d *failingDriver) Driver() driver.Driver { return d.inner }

func (d *failingDriver) Connect(context.Context) (driver.Conn, error) {
	c, err := d.inner.Open(d.name)
	return failingConn{c, d.life}, err
}

func (c failingConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	st, err := c.Conn.(driver.ConnPrepareContext).PrepareContext(ctx, query)
	return failingStmt{st, c.life}, err
}

func (c failingConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	return c.Conn.(driver.ConnBeginTx).BeginTx(ctx, opts)
}

func (s failingStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	n := s.life.node
	if n.unreadable.Load() > 0 && !n.b.looks.Load() && s.life.parts.clu.leading() && n.unreadable.Add(-1) >= 0 {
		s.life.unread.Store(true)
		n.b.reach("a read that fails while a leader takes over")
		return nil, errors.New("disk I/O error")
	}
	return s.Stmt.(driver.StmtQueryContext).QueryContext(ctx, args)
}

// sends is what a server sends to others. It expects that no entry is sent to a server where it is on its way already,
// and that none is taken more often than the protocol can be wrong about what the other lacks.
type sends struct {
	transport
	b *bubble

	mu       sync.Mutex      // guards what follows
	underway map[string]bool // server → an append with entries is on its way
	done     map[sendKey]int // how often one was taken
}

type sendKey struct {
	to    string
	life  *life // of the server
	term  uint64
	index uint64
}

// sendsMax is how often: a probe that is refused, and an answer that came too late, may each cost one.
const sendsMax = 3

func (s *sends) RoundTrip(r *http.Request) (*http.Response, error) {
	body, ok := r.Body.(*deadlineReader)
	if !ok || r.URL.Path != "/raft" {
		return s.transport.RoundTrip(r)
	}
	data, err := io.ReadAll(body.ReadCloser)
	if err != nil {
		return nil, err
	}
	body.ReadCloser = io.NopCloser(bytes.NewReader(data))
	var list []message
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, err
	}
	to := list[0].To.Name
	s.begin(to)
	res, err := s.transport.RoundTrip(r)
	s.end(to, list[0], err == nil && res.StatusCode == http.StatusOK)
	return res, err
}

func (s *sends) begin(to string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.underway[to] {
		s.b.fail("entries are sent to %s while others are on their way to it", to)
	}
	s.underway[to] = true
}

func (s *sends) end(to string, m message, taken bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.underway[to] = false
	for _, e := range m.Entries {
		k := sendKey{to, s.b.nodes[to[1]-'1'].latest.Load(), m.Term, e.Index}
		if taken {
			s.done[k]++
		}
		if s.done[k] > sendsMax {
			s.b.fail("%s has taken entry %d %d times in term %d", to, e.Index, s.done[k], m.Term)
		}
	}
}

// start starts a node on what is in its directory.
func (n *bubbleNode) start() {
	b := n.b
	b.hub.light(n)
	n.lives++
	n.begun = time.Now()
	ctx, stop := context.WithCancel(context.Background())
	l := &life{node: n, number: n.lives, dir: n.dir, stop: stop, gone: make(chan struct{}), ended: make(chan struct{}), wires: map[*wire]bool{}}
	n.life = l
	n.latest.Store(l)
	b.lives = append(b.lives, l)
	b.endOrphans(n)
	cfg, err := parseConfig(append([]string{"--node-name=" + n.name, "--bind-addr=" + n.host + ":8946", "--http-addr=" + n.host + ":8080", "--insecure",
		"--data-dir=" + n.dir, "--encrypt=" + base64.StdEncoding.EncodeToString(testKey), "--timezone=UTC", "--executions-keep=100000"}, n.args...), nil, io.Discard)
	if err != nil {
		b.t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(b.seed, uint64(len(n.name))<<40+uint64(n.name[1])<<32+uint64(n.lives)))
	var mu sync.Mutex
	cfg.host = host{
		network: network{
			listen: func(_, addr string) (net.Listener, error) { return b.hub.listen(l, addr) },
			dial: func(ctx context.Context, _, addr string) (net.Conn, error) {
				return b.hub.dial(ctx, l, n.host, addr)
			},
			chance: func() uint64 {
				mu.Lock()
				defer mu.Unlock()
				return rnd.Uint64()
			},
		},
		shell: func(ctx context.Context, o *order, out io.Writer) error { return b.runProcess(ctx, l, o, out) },
		disk:  l.disk,
		made: func(p *parts) {
			l.parts = p
			l.sync()          // what it found there is safe
			if p.clu != nil { // who comes back may vote again
				b.mu.Lock()
				delete(b.left, p.plane.cfg.ID)
				b.mu.Unlock()
			}
			if p.clu != nil {
				p.clu.plane.beats.Transport = &sends{b: b, transport: p.clu.plane.beats.Transport.(transport), done: map[sendKey]int{}, underway: map[string]bool{}}
				if err := l.failReads(p.clu.store); err != nil {
					b.t.Error(err)
				}
			}
			if p.clu != nil && b.plan.logKept > 0 {
				p.clu.store.kept = logRetention{entries: b.plan.logKept, bytes: logBytesKept, pinned: logBytesPinned, slack: 10}
			}
		},
	}
	listener, err := b.hub.listen(l, n.host+":8080")
	if err != nil {
		b.t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(&l.log, &slog.HandlerOptions{Level: slog.LevelInfo}))
	run := runWorker
	if n.server {
		run = runServer
	}
	go func() {
		defer close(l.ended)
		l.err = run(ctx, cfg, listener, func() {}, log)
		listener.Close()
		if l.dead.Load() {
			os.RemoveAll(l.dir)
		}
	}()
}

// runs reports whether a node has a process that is not about to end.
func (n *bubbleNode) runs() bool {
	select {
	case <-n.life.ended:
		return false
	default:
		return !n.life.dead.Load() && !n.life.quiet
	}
}

// crash kills the process of a node, or takes the power from its machine. What
// is on its disk then is where it starts again.
func (n *bubbleNode) crash(power bool) {
	synctest.Wait() // it may have been started just now, and makes its files
	l := n.life
	dir := filepath.Join(n.b.dir, fmt.Sprintf("%s.%d", n.name, n.lives+1))
	if err := l.copyDisk(dir, power); err != nil {
		n.b.fail("%s: its disk cannot be copied: %v", n.name, err)
	}
	n.dir, n.steady = dir, time.Time{}
	n.b.hub.die(l, power)
	l.stop()
	n.b.killProcesses(l, power)
}

// sync notes that all that is written is safe.
func (l *life) sync() {
	written, _ := readWAL(l.dir)
	l.synced.Store(&written)
}

// unsynced returns how many frames of its log a power cut may take.
func (l *life) unsynced() uint32 {
	written, copied := readWAL(l.dir)
	if synced := l.synced.Load(); synced != nil && synced.salt == written.salt {
		copied = max(copied, synced.frames)
	}
	return written.frames - copied
}

func (l *life) copyDisk(dir string, power bool) error {
	rnd := l.node.b.rnd
	written, _ := readWAL(l.dir)
	return filepath.WalkDir(l.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(dir, strings.TrimPrefix(path, l.dir))
		switch {
		case d.IsDir():
			return os.MkdirAll(to, 0o700)
		case d.Name() == "lock" || d.Name() == "belfry.db-shm":
			return nil
		case power && filepath.Base(filepath.Dir(path)) == "results" && rnd.IntN(2) == 0:
			return nil // such files are not synced
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if power && d.Name() == "belfry.db-wal" && len(data) > walHeader && l.parts != nil {
			lost := l.unsynced()
			kept := written.frames - lost
			n := uint32(rnd.IntN(int(lost) + 1))
			if l.node.flip && lost > 0 {
				n = 1 + uint32(rnd.IntN(int(lost)))
			}
			data = data[:min(len(data), walHeader+int(kept+n)*walFrame)]
			if n > 0 {
				l.node.b.reach("a power cut in the middle of what was not synced")
			}
			if n > 0 && (l.node.flip || rnd.IntN(4) == 0) {
				data[len(data)-1-rnd.IntN(walFrame)] ^= 1 << rnd.IntN(8)
				l.node.b.reach("a flipped bit in the log's last page")
			}
		}
		return os.WriteFile(to, data, 0o600)
	})
}

// ---- What the processes of jobs did

// A bubbleProcess is one start of an execution.
type bubbleProcess struct {
	life    *life
	order   order
	begun   time.Time
	ended   time.Time // zero: it runs
	outcome string    // as it ended by itself or was ended; "": nobody knows
	orphan  bool      // its node's process was killed
}

// runProcess is what the command of a job does: it waits for a time and has an
// exit status, as in "0.5 1".
func (b *bubble) runProcess(ctx context.Context, l *life, o *order, out io.Writer) error {
	var seconds float64
	var status int
	if _, err := fmt.Sscan(o.Config["command"], &seconds, &status); err != nil {
		return err
	}
	p := &bubbleProcess{life: l, order: *o, begun: time.Now()}
	b.mu.Lock()
	b.processes = append(b.processes, p)
	b.mu.Unlock()
	fmt.Fprintf(out, "%s begins\n", o.Job)
	timer := time.NewTimer(time.Duration(seconds * float64(time.Second)))
	defer timer.Stop()
	var err error
	outcome := outcomeSuccess
	select {
	case <-timer.C:
		if status != 0 {
			outcome, err = outcomeFailed, fmt.Errorf("exit status %d", status)
		}
	case <-ctx.Done():
		err = context.Cause(ctx)
		outcome = outcomeFailed
		if end, ok := errors.AsType[*ending](err); ok {
			outcome = end.outcome
		}
	case <-l.gone:
		return errDead
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if p.ended.IsZero() {
		p.ended, p.outcome = time.Now(), outcome
	}
	return err
}

// killProcesses is what becomes of what a life ran when it is killed: without
// power all of it ends, else it goes on until the node starts again.
func (b *bubble) killProcesses(l *life, power bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.processes {
		if p.life == l && p.ended.IsZero() {
			if p.orphan = !power; power {
				p.ended = time.Now()
			}
		}
	}
}

func (b *bubble) endOrphans(n *bubbleNode) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.processes {
		if p.life.node == n && p.orphan && p.ended.IsZero() {
			p.ended = time.Now()
		}
	}
}

// A bubblePlan is what a seed decides first.
type bubblePlan struct {
	servers, agents int
	rounds          int // of trouble and rest
	logKept         int // entries, 0: as in production
	jobs            int // that fire each second or so
	clients         int
	first           bubbleFault
}

// bubble is a cluster of whole servers, its clients, and what happens to them.
// Its goroutine is the one that draws chance, moves packets, does what befalls
// the nodes, and checks; it does so while all others stand still.
type bubble struct {
	t       *testing.T
	seed    uint64
	plan    bubblePlan
	rnd     *rand.Rand
	dir     string
	hub     *hub
	nodes   []*bubbleNode
	lives   []*life // of all nodes
	history []string
	failed  error
	leaving atomic.Int32   // leaves that are not answered
	work    sync.WaitGroup // of clients
	looks   atomic.Bool    // its goroutine does something, all others stand still
	events  []bubbleEvent  // by time
	calm    time.Time      // since when nothing is wrong; zero: something is

	replica *store // follows the common log
	ledger  *ledger
	inbox   *noticeLedger
	barred  []bubbleBar
	free    map[int64]bool    // executions that started by force, or were bound later: nothing barred these
	moved   map[string]int64  // node → when it was drained last, or that ended
	terms   map[uint64]string // of the log, index → digest, while it is followed
	leaders map[uint64]string // term → who led it
	left    map[string]bool   // ids of servers that left
	checked time.Time
	since   map[string]time.Time // what is wrong for now → since when
	shaky   bool                 // links are bad or cut, but not those of a pause

	mu        sync.Mutex // guards what follows
	processes []*bubbleProcess
	given     map[int64]string // group of a run by hand → the parameter that it was given
	calls     map[*bubbleCall]bool
	clients   []*bubbleClient
	reached   map[string]int // rare state → how often
}

// A bubbleBar is what kept executions from starting, from a log index to another.
type bubbleBar struct {
	set      ruleSet
	from, to uint64 // to is 0 while it lasts
}

type bubbleEvent struct {
	at time.Time
	do func()
}

// newPlan is what a seed decides.
func newPlan(seed uint64, rnd *rand.Rand) bubblePlan {
	p := bubblePlan{servers: []int{1, 1, 3, 3, 3, 3, 5}[rnd.IntN(7)], agents: 2, rounds: 1 + rnd.IntN(2), jobs: 2 + rnd.IntN(3), clients: 2 + rnd.IntN(2)}
	if rnd.IntN(2) == 0 {
		p.logKept = 30 + rnd.IntN(100)
	}
	p.first = bubbleFaults[(seed-1)%uint64(len(bubbleFaults))]
	if p.first.plan != nil {
		p.first.plan(&p)
	}
	return p
}

func newBubble(t *testing.T, seed uint64, plan *bubblePlan) *bubble {
	rnd := rand.New(rand.NewPCG(seed, 0))
	given := plan != nil // then all nodes are alike
	if !given {
		plan = new(newPlan(seed, rnd))
	}
	b := &bubble{t: t, seed: seed, plan: *plan, rnd: rnd, dir: simTempDir(t), reached: map[string]int{}, ledger: newLedger(),
		free: map[int64]bool{}, moved: map[string]int64{}, given: map[int64]string{}, terms: map[uint64]string{}, leaders: map[uint64]string{}, left: map[string]bool{}, since: map[string]time.Time{}, calls: map[*bubbleCall]bool{}}
	b.hub = newHub(seed)
	b.inbox = newNoticeLedger(b)
	b.hub.delay, b.hub.jitter = time.Duration(rnd.IntN(3_000))*time.Microsecond, time.Duration(1+rnd.IntN(2_000))*time.Microsecond
	var err error
	if b.replica, err = openStore(filepath.Join(b.dir, "replica")); err != nil {
		t.Fatal(err)
	}
	for i := range b.plan.servers + b.plan.agents {
		n := &bubbleNode{b: b, name: fmt.Sprintf("n%d", i+1), host: fmt.Sprintf("10.0.0.%d", i+1), server: i < b.plan.servers}
		n.dir = filepath.Join(b.dir, n.name+".1")
		n.args = []string{"--tag=role=x", "--notify-webhook=http://" + bubbleInbox, "--notify-on=failed,recovered,missed,lost,node-failed,node-back"}
		if !given {
			n.limit = int((seed + uint64(i)) % 5)
		}
		if n.limit > 0 {
			n.args = append(n.args, fmt.Sprintf("--max-concurrent=%d", n.limit))
		}
		n.sync.Store(int64(syncTime))
		if n.server {
			n.args = append(n.args, "--server", fmt.Sprintf("--bootstrap-expect=%d", b.plan.servers))
		}
		b.nodes = append(b.nodes, n)
	}
	for _, n := range b.nodes {
		for _, other := range b.servers() {
			n.args = append(n.args, "--retry-join="+other.host+":8946")
		}
	}
	for i := range b.plan.clients {
		b.clients = append(b.clients, newBubbleClient(b, i))
	}
	return b
}

func (b *bubble) servers() []*bubbleNode { return b.nodes[:b.plan.servers] }

// fail ends the life of the bubble with its first error.
func (b *bubble) fail(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failed == nil {
		b.failed = fmt.Errorf("at %.3fs: %w", time.Since(bubbleEpoch).Seconds(), fmt.Errorf(format, args...))
	}
}

func (b *bubble) failure() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failed
}

// did notes what befell.
func (b *bubble) did(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	b.history = append(b.history, fmt.Sprintf("%8.3fs %s", time.Since(bubbleEpoch).Seconds(), line))
	b.hub.mu.Lock()
	defer b.hub.mu.Unlock()
	b.hub.trace.add(traced{text: line})
}

// reach counts a rare state.
func (b *bubble) reach(what string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reached[what]++
}

// at has something done at a time.
func (b *bubble) at(t time.Time, do func()) {
	i := sort.Search(len(b.events), func(i int) bool { return b.events[i].at.After(t) })
	b.events = slices.Insert(b.events, i, bubbleEvent{t, do})
}

func (b *bubble) after(d time.Duration, do func()) { b.at(time.Now().Add(d), do) }

func (b *bubble) between(low, high time.Duration) time.Duration {
	return low + time.Duration(b.rnd.Int64N(int64(high-low)))
}

// until has time go on until ok, or fails after patience. ok is asked at each step.
func (b *bubble) until(what string, patience time.Duration, ok func() bool) {
	end := time.Now().Add(patience)
	for b.failure() == nil && !ok() {
		if !time.Now().Before(end) {
			b.fail("no %s within %s", what, patience)
			return
		}
		next := end
		if soon := time.Now().Add(50 * time.Millisecond); soon.Before(next) {
			next = soon
		}
		if len(b.events) > 0 && b.events[0].at.Before(next) {
			next = b.events[0].at
		}
		b.looks.Store(false)
		b.hub.wait(next)
		b.hub.pass()
		b.looks.Store(true)
		for len(b.events) > 0 && !b.events[0].at.After(time.Now()) && b.failure() == nil {
			e := b.events[0]
			b.events = b.events[1:]
			e.do()
		}
		b.check()
	}
}

// pass has time go on.
func (b *bubble) pass(d time.Duration) { b.passUntil(d, func() bool { return false }) }

// passUntil has time go on until ok, but not longer than d.
func (b *bubble) passUntil(d time.Duration, ok func() bool) {
	end := time.Now().Add(d)
	b.until("end", d+time.Second, func() bool { return !time.Now().Before(end) || ok() })
}

// passCalm has time go on until checkCalm has seen that nothing is wrong, or that nothing stays wrong.
func (b *bubble) passCalm() {
	seen := calmBefore + b.between(time.Second, 3*time.Second)
	end := seen + b.calmLimit()
	b.passUntil(end, func() bool { return time.Since(b.calm) > seen && len(b.since) == 0 })
}

// begin starts all nodes, and returns when one leads.
func (b *bubble) begin() {
	for _, n := range b.nodes {
		time.Sleep(137 * time.Microsecond) // so that no clock of one node strikes with those of others, or with the hub's
		n.start()
	}
	b.until("leader", 20*time.Second, func() bool { return b.leader() != nil })
	b.settle()
}

// live is the whole life of a bubble.
func (b *bubble) live() {
	b.begin()
	stop := make(chan struct{})
	for _, c := range b.clients {
		b.work.Go(func() { c.run(stop) })
	}
	b.pass(b.between(time.Second, 4*time.Second))
	for round := 0; round < b.plan.rounds && b.failure() == nil; round++ {
		if round > 0 {
			b.pass(b.between(time.Second, 6*time.Second))
		}
		for n := 1 + b.rnd.IntN(4); n > 0 && b.failure() == nil; n-- {
			f := b.anyFault()
			if len(b.history) == 0 {
				f = b.plan.first
			}
			b.did("%s", f.name)
			b.befall(f)
			b.pass(b.between(100*time.Millisecond, 4*time.Second))
		}
		b.heal()
	}
	b.passCalm()
	close(stop)
	done := make(chan struct{})
	go func() { b.work.Wait(); close(done) }()
	b.until("end of the last write of all clients", 90*time.Second, func() bool { return closed(done) })
	b.finish()
	b.shut(done)
	if b.failure() == nil {
		b.compare()
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// leader is the server that leads in the latest term, as itself knows.
func (b *bubble) leader() (leader *bubbleNode) {
	var term uint64
	for _, n := range b.servers() {
		if c := n.driver(); c != nil && n.runs() && c.leading() && c.status().Term > term {
			leader, term = n, c.status().Term
		}
	}
	return leader
}

// driver is that of the server's living process, nil if there is none.
func (n *bubbleNode) driver() *cluster {
	if l := n.life; l != nil && !l.dead.Load() && l.parts != nil && !closed(l.ended) {
		return l.parts.clu
	}
	return nil
}

// settle notes that nothing is wrong from now on.
func (b *bubble) settle() {
	b.calm = time.Now()
	for _, n := range b.nodes {
		if n.steady.IsZero() {
			n.steady = b.calm
		}
	}
}

// unsteady notes that others cannot rely on a node.
func (b *bubble) unsteady(nodes ...*bubbleNode) {
	b.calm = time.Time{}
	for _, n := range nodes {
		n.steady = time.Time{}
	}
}

func (b *bubble) setCut(on bool, from, to *bubbleNode) {
	b.hub.mu.Lock()
	defer b.hub.mu.Unlock()
	b.hub.cut[link{from.host, to.host}] = on
}

func (b *bubble) cutBoth(a, c *bubbleNode) {
	b.setCut(true, a, c)
	b.setCut(true, c, a)
}

func (b *bubble) pick(list []*bubbleNode) *bubbleNode { return list[b.rnd.IntN(len(list))] }

// A bubbleFault is something that befalls the nodes.
type bubbleFault struct {
	name   string
	weight int                            // of its chance
	plan   func(p *bubblePlan)            // how it must be where it comes first; nil: anyhow
	do     func(b *bubble, n *bubbleNode) // n: a node of chance, often the leader
}

// bubbleFaults are all that can befall. The life of a seed begins with the one whose turn it is, and goes on with
// others of chance.
var bubbleFaults = []bubbleFault{
	{"crash", 4, nil, func(b *bubble, n *bubbleNode) { b.restart(n, b.rnd.IntN(2) == 0) }},
	{"crash of all servers", 2, nil, func(b *bubble, _ *bubbleNode) {
		for _, n := range b.servers() {
			b.restart(n, b.rnd.IntN(2) == 0)
		}
	}},
	{"flipped bit in the log", 1, planThree, (*bubble).flipLog},
	{"stop", 2, nil, (*bubble).stopNode},
	{"pause", 2, nil, (*bubble).pause},
	{"long pause", 1, planThree, func(b *bubble, n *bubbleNode) {
		b.pause(n)
		b.pass(pauseLimit + 3*time.Second)
	}},
	{"pause and crash", 1, nil, func(b *bubble, n *bubbleNode) {
		b.reach("a pause and a crash together")
		other := b.pick(b.nodes)
		b.pause(n)
		b.restart(other, b.rnd.IntN(2) == 0)
	}},
	{"one-way cut", 2, nil, (*bubble).cutOneWay},
	{"two halves", 2, nil, (*bubble).cutInTwo},
	{"bad network", 2, nil, (*bubble).badNetwork},
	{"slow disk", 2, nil, func(b *bubble, _ *bubbleNode) {
		b.slowDisk(b.pick(b.servers()), b.between(50*time.Millisecond, 1500*time.Millisecond))
	}},
	{"sole voter with a slow disk", 1, planOne, func(b *bubble, _ *bubbleNode) {
		n := b.pick(b.servers())
		b.slowDisk(n, b.between(600*time.Millisecond, time.Second))
		b.restart(n, b.rnd.IntN(2) == 0)
	}},
	{"hung disk", 1, nil, func(b *bubble, _ *bubbleNode) {
		b.slowDisk(b.pick(b.servers()), time.Hour)
		b.pass(stuckLimit + 2*time.Second)
	}},
	{"hung disk until callers give up", 1, planOne, func(b *bubble, _ *bubbleNode) {
		b.slowDisk(b.pick(b.servers()), time.Hour)
		if b.plan.servers == 1 {
			b.reach("a write that its caller has given up")
			b.newClient(func(c *bubbleClient) {
				for range 5 {
					c.putAndLeave(0)
				}
			})
			b.pass(70 * time.Second)
		}
	}},
	{"slow applying", 1, planThree, (*bubble).slowApplying},
	{"failing reads", 1, nil, func(b *bubble, _ *bubbleNode) { // who comes to lead cannot read for once
		for _, n := range b.servers() {
			n.unreadable.Store(int32(1 + b.rnd.IntN(3)))
		}
		if l := b.leader(); l != nil {
			b.did("the next reads of all servers fail")
			b.restart(l, false)
		}
	}},
	{"leave", 2, planThree, func(b *bubble, _ *bubbleNode) { b.leave(b.pick(b.servers())) }},
	{"leave of any node", 1, planThree, (*bubble).leave},
	{"election during a snapshot", 1, planShortLog, (*bubble).electDuringSnapshot},
	{"flipped bit in a snapshot", 1, planShortLog, (*bubble).flipSnapshot},
}

// rareStates are what as many seeds as there are faults reach together.
var rareStates = []string{
	"a flipped bit in a snapshot",
	"a drained node",
	"a flipped bit in the log's last page",
	"a hold",
	"a leader whose applying is slow",
	"a pause and a crash together",
	"a power cut in the middle of what was not synced",
	"a read that fails while a leader takes over",
	"a repeated key during a leave",
	"a sole voter with a slow disk",
	"a tick for some nodes while one stands still",
	"a write that its caller has given up",
	"a writer that is stuck",
	"an election during a snapshot",
}

func planOne(p *bubblePlan) { p.servers = 1 }

func planThree(p *bubblePlan) { p.servers = max(p.servers, 3) }

func planShortLog(p *bubblePlan) {
	planThree(p)
	p.logKept = max(p.logKept, 30)
}

// befall does something to the nodes.
func (b *bubble) befall(f bubbleFault) {
	n := b.pick(b.nodes)
	if l := b.leader(); l != nil && b.rnd.IntN(3) == 0 {
		n = l
	}
	f.do(b, n)
}

// anyFault is one of chance.
func (b *bubble) anyFault() bubbleFault {
	total := 0
	for _, f := range bubbleFaults {
		total += f.weight
	}
	draw := b.rnd.IntN(total)
	for _, f := range bubbleFaults {
		if draw -= f.weight; draw < 0 {
			return f
		}
	}
	panic("not reached")
}

func (b *bubble) cutOneWay(n *bubbleNode) {
	to := b.pick(b.nodes)
	if to == n {
		return
	}
	b.did("cut %s to %s", n.name, to.name)
	b.shaky = true
	b.unsteady(b.nodes...)
	b.setCut(true, n, to)
}

func (b *bubble) cutInTwo(*bubbleNode) {
	b.did("cut in two")
	b.shaky = true
	b.unsteady(b.nodes...)
	side := map[*bubbleNode]bool{}
	for _, n := range b.nodes {
		side[n] = b.rnd.IntN(2) == 0
	}
	for _, x := range b.nodes {
		for _, y := range b.nodes {
			if side[x] && !side[y] {
				b.cutBoth(x, y)
			}
		}
	}
}

func (b *bubble) badNetwork(*bubbleNode) {
	b.hub.mu.Lock()
	b.hub.loss, b.hub.delay, b.hub.jitter = b.rnd.Float64()*0.2, b.between(0, 100*time.Millisecond), b.between(1, 50*time.Millisecond)
	b.hub.mu.Unlock()
	b.shaky = true
	b.did("a bad network: loss %.2f, delay %s, jitter %s", b.hub.loss, b.hub.delay, b.hub.jitter)
	b.unsteady(b.nodes...)
}

func (b *bubble) slowDisk(n *bubbleNode, d time.Duration) {
	b.did("each sync of %s takes %s", n.name, d)
	b.unsteady(n)
	n.sync.Store(int64(d))
}

// slowApplying has a leader take longer than an election timeout to apply what is committed, which deposes nobody.
func (b *bubble) slowApplying(*bubbleNode) {
	l := b.leader()
	if l == nil || b.calm.IsZero() || b.plan.servers == 1 {
		return
	}
	term := l.driver().status().Term
	l.apply.Store(int64(b.between(600*time.Millisecond, 900*time.Millisecond)))
	b.did("to apply takes %s %s", l.name, time.Duration(l.apply.Load()))
	b.reach("a leader whose applying is slow")
	b.unsteady(l)
	b.pass(5 * time.Second)
	l.apply.Store(0)
	if c := l.driver(); c == nil || !c.leading() || c.status().Term != term {
		b.fail("%s led in term %d, and leads no more since its applying is slow", l.name, term)
	}
}

// flipLog takes the power from a server that has written what it has not synced, and flips a bit of that.
func (b *bubble) flipLog(*bubbleNode) {
	n := b.leader()
	if n == nil {
		return
	}
	b.passUntil(5*time.Second, func() bool { return !n.runs() || n.life.unsynced() > 0 })
	n.flip = true
	b.restart(n, true)
	n.flip = false
}

// pause stops a node: nothing comes in and nothing goes out, and its disk waits.
func (b *bubble) pause(n *bubbleNode) {
	b.did("pause %s", n.name)
	b.unsteady(b.nodes...)
	n.paused.Store(true)
	if n.stands.IsZero() {
		n.stands = time.Now()
	}
	for _, other := range b.nodes {
		if other != n {
			b.cutBoth(n, other)
		}
	}
}

// fallBehind has a server fall behind the log that others keep, until a snapshot is on its way to it from the leader.
// It returns the two, or nil.
func (b *bubble) fallBehind() (n, leader *bubbleNode) {
	n, leader = b.pick(b.servers()), b.leader()
	if n == leader {
		n = b.servers()[(slices.Index(b.servers(), n)+1)%b.plan.servers]
	}
	if b.plan.logKept == 0 || leader == nil || n == leader || !n.runs() || n.driver() == nil {
		return nil, nil
	}
	b.did("%s falls behind", n.name)
	b.unsteady(n)
	last := n.driver().store.applied.Load()
	n.crash(false)
	b.passUntil(60*time.Second, func() bool {
		var first int64
		if l := b.leader(); l != nil {
			if err := l.driver().store.view("SELECT coalesce(min(idx), 0) FROM log", nil, &first); err != nil {
				b.fail("%s: %v", l.name, err)
			}
		}
		return uint64(first) > last+1
	})
	b.did("start %s", n.name)
	n.start()
	b.passUntil(5*time.Second, func() bool { return n.takesSnapshot() })
	if leader = b.leader(); leader == nil || leader == n || !n.takesSnapshot() {
		return nil, nil
	}
	return n, leader
}

// electDuringSnapshot has the leader lose power while another server takes its snapshot.
func (b *bubble) electDuringSnapshot(*bubbleNode) {
	if _, leader := b.fallBehind(); leader != nil {
		b.did("crash %s, power cut true", leader.name)
		b.unsteady(leader)
		leader.crash(true)
		b.startLater(leader, 4*time.Second)
	}
}

// flipSnapshot has a bit flip on the way of a snapshot, as the sums of TCP do not show.
func (b *bubble) flipSnapshot(*bubbleNode) {
	if n, leader := b.fallBehind(); n != nil {
		b.did("a bit flips from %s to %s", leader.name, n.name)
		b.hub.mu.Lock()
		b.hub.flip[link{leader.host, n.host}] = func() { b.reach("a flipped bit in a snapshot") }
		b.hub.mu.Unlock()
	}
}

// takesSnapshot reports whether a snapshot is on its way to a server.
func (n *bubbleNode) takesSnapshot() bool {
	if n.driver() == nil {
		return false
	}
	files, err := filepath.Glob(filepath.Join(n.dir, snapshotPattern))
	if err != nil {
		n.b.fail("%v", err)
	}
	return len(files) > 0 && !n.driver().leading()
}

// restart crashes a node and starts it again a while later.
func (b *bubble) restart(n *bubbleNode, power bool) {
	if !n.runs() {
		return
	}
	b.did("crash %s, power cut %t", n.name, power)
	b.unsteady(n)
	n.crash(power)
	b.startLater(n, b.between(0, 4*time.Second))
}

func (b *bubble) startLater(n *bubbleNode, d time.Duration) {
	b.after(d, func() {
		b.did("start %s", n.name)
		n.start()
	})
}

// stopNode stops a node as a signal does, and starts it again.
func (b *bubble) stopNode(n *bubbleNode) {
	if !n.runs() {
		return
	}
	b.did("stop %s", n.name)
	b.unsteady(n)
	n.life.quiet = true
	n.life.stop()
}

// lookAfter starts again what has ended: whom a signal or a leave told to. A
// server that left sometimes comes back with an empty directory, another one
// under its name.
func (b *bubble) lookAfter(n *bubbleNode) {
	l := n.life
	if l.dead.Load() || l.followed || !closed(l.ended) {
		return
	}
	l.followed = true
	if !l.unread.Load() && (l.err != nil || !l.quiet && !l.leaving) { // who could not read may end
		b.fail("%s ended: %v", n.name, l.err)
		return
	}
	if l.err != nil && !strings.Contains(l.err.Error(), "look at") {
		b.fail("%s ended without a word of what to do: %v", n.name, l.err)
		return
	}
	b.did("%s has ended", n.name)
	b.unsteady(n)
	if l.leaving && b.rnd.IntN(2) == 0 {
		n.dir = filepath.Join(b.dir, fmt.Sprintf("%s.%d", n.name, n.lives+1))
	}
	b.startLater(n, b.between(0, 4*time.Second))
}

// leave has a node leave, and starts it anew with an empty directory.
func (b *bubble) leave(n *bubbleNode) {
	if !n.runs() || n.server && b.plan.servers == 1 {
		return
	}
	b.did("leave %s", n.name)
	b.unsteady(n)
	l := n.life
	l.leaving = true
	b.leaving.Add(1)
	b.newClient(func(c *bubbleClient) {
		defer b.leaving.Add(-1)
		status, _, _ := c.call(context.Background(), n, "POST", "/v1/leave", "", nil)
		b.mu.Lock()
		defer b.mu.Unlock()
		if status == http.StatusOK && n.server {
			b.left[l.parts.plane.cfg.ID] = true
		}
	})
	b.newClient((*bubbleClient).putAtOnce)
}

// newClient has one client more do something. The others may be busy.
func (b *bubble) newClient(do func(c *bubbleClient)) {
	c := newBubbleClient(b, len(b.clients))
	b.clients = append(b.clients, c)
	b.work.Go(func() {
		defer c.http.CloseIdleConnections()
		do(c)
	})
}

// heal ends all that is wrong.
func (b *bubble) heal() {
	b.follow() // what was decided before
	b.did("heal")
	b.shaky = false
	b.hub.mu.Lock()
	clear(b.hub.cut)
	b.hub.loss, b.hub.delay, b.hub.jitter = 0, time.Millisecond, time.Millisecond
	b.hub.mu.Unlock()
	for _, n := range b.nodes {
		n.paused.Store(false)
		n.stands, n.given = time.Time{}, 0
		if d := time.Duration(n.sync.Load()); b.plan.servers > 1 || d > time.Second {
			n.sync.Store(int64(syncTime)) // or a server that is alone goes on with a slow disk
		} else if d > syncTime {
			b.reach("a sole voter with a slow disk")
		}
	}
	b.until("life of all nodes", 60*time.Second, func() bool {
		return !slices.ContainsFunc(b.nodes, func(n *bubbleNode) bool { return !n.runs() || n.life.parts == nil })
	})
	b.settle()
}

// shut stops all nodes and clients, and waits until nothing runs.
func (b *bubble) shut(clients <-chan struct{}) {
	b.events = nil
	for _, n := range b.nodes {
		if n.life.followed = true; n.life.dead.Load() {
			continue
		}
		n.life.stop()
		if b.failure() != nil {
			b.hub.die(n.life, false)
		}
	}
	pass := func() { b.hub.wait(time.Now().Add(time.Second)); b.hub.pass() }
	for !closed(clients) || slices.ContainsFunc(b.lives, func(l *life) bool { return !closed(l.ended) }) {
		pass()
	}
	b.inbox.server.Close()
	for range 3 {
		pass()
	}
}

// ---- What must hold

// check is called at each step, when all others stand still.
func (b *bubble) check() {
	now := time.Now()
	for _, n := range b.nodes {
		b.lookAfter(n)
		if c := n.driver(); c != nil {
			b.checkDriver(n, c)
			b.checkStuck(n, c)
		}
	}
	if now.Sub(b.checked) < 200*time.Millisecond || b.failure() != nil {
		return
	}
	b.checked = now
	b.follow()
	b.checkLeft()
	if b.calm.IsZero() {
		clear(b.since)
		return
	}
	b.checkCalm(now)
}

// checkDriver expects of a server that what it has applied grows, and that no
// other leads in its term. It reads what the driver publishes: synctest.Wait lets
// the driver's past be seen, but the race detector knows of no order with its future.
func (b *bubble) checkDriver(n *bubbleNode, c *cluster) {
	l, applied := n.life, c.store.applied.Load()
	if applied < l.applied {
		b.fail("%s has applied %d, before that %d", n.name, applied, l.applied)
	}
	l.applied = applied
	st := c.status()
	if st.Term < l.term {
		b.fail("%s is in term %d, before that in %d", n.name, st.Term, l.term)
	}
	if l.term = st.Term; st.Leading {
		if other := b.leaders[st.Term]; other != "" && other != n.name {
			b.fail("%s and %s lead in term %d", other, n.name, st.Term)
		}
		if b.leaders[st.Term] == "" && slices.ContainsFunc(b.servers(), (*bubbleNode).takesSnapshot) {
			b.reach("an election during a snapshot")
		}
		b.leaders[st.Term] = n.name
	}
}

// checkStuck expects that a server whose writer is stuck says so.
func (b *bubble) checkStuck(n *bubbleNode, c *cluster) {
	busy := n.life.busy.Load()
	if busy == 0 || time.Since(timeOf(busy)) < stuckLimit || n.life.quiet || n.life.leaving {
		return
	}
	b.reach("a writer that is stuck")
	if problems, _ := c.plane.health(); len(problems) == 0 {
		b.fail("%s says that it is healthy, and its writer is stuck since %.3fs", n.name, timeOf(busy).Sub(bubbleEpoch).Seconds())
	}
}

// checkLeft expects that who left is no voter any more.
func (b *bubble) checkLeft() {
	n := b.leader()
	if n == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, v := range n.driver().status().Voters {
		if b.left[v.ID] && b.failed == nil {
			b.failed = fmt.Errorf("at %.3fs: %s has left, and votes according to %s", time.Since(bubbleEpoch).Seconds(), v.Name, n.name)
		}
	}
}

// How long something may be wrong although nobody does anything to the nodes.
const (
	calmBefore = 7 * time.Second // after the last that was done
	calmLimit  = 5 * time.Second
	slowWrites = 8                // that may come before what is looked at, each with a sync
	callLimit  = 12 * time.Second // of a request
	pauseLimit = 4 * time.Second  // after which all know that a node stands still, also who leads since then
	stuckLimit = 5*time.Second + 200*time.Millisecond

	givenLimit  = 7               // runs that a node is chosen for while it stands still
	unsureLimit = 7 * time.Second // in which a job fires whose client went away
)

// checkCalm expects that the cluster does what it is for while nothing is
// wrong: somebody leads, ticks are decided, calls are answered, and all say that
// they are healthy.
func (b *bubble) checkCalm(now time.Time) {
	if now.Sub(b.calm) < calmBefore {
		return
	}
	wrong := map[string]string{}
	leader := b.leader()
	if leader == nil {
		wrong["leader"] = "no server leads"
	} else {
		st := leader.driver().store
		var due int64
		held := len(st.shown.Load().rules[ruleHold]) > 0
		if err := st.view("SELECT coalesce(min(s.next), 0) FROM job_state s JOIN jobs j ON j.id = s.job WHERE j.deleted = 0 AND j.disabled = 0 AND j.parent_job = '' AND s.next <> ?", []any{int64(never)}, &due); err != nil {
			b.fail("%s: %v", leader.name, err)
		}
		if due != 0 && now.UnixNano() > due {
			wrong[fmt.Sprint("tick of ", due)] = fmt.Sprintf("a tick is undecided that was due at %.3fs", timeOf(due).Sub(bubbleEpoch).Seconds())
		}
		if err := st.view("SELECT coalesce(min(due), 0) FROM pending WHERE waits_for = ''", nil, &due); err != nil {
			b.fail("%s: %v", leader.name, err)
		}
		if due != 0 && now.UnixNano() > due && !held {
			wrong[fmt.Sprint("pending of ", due)] = fmt.Sprintf("a retry or child is undecided that was due at %.3fs", timeOf(due).Sub(bubbleEpoch).Seconds())
		}
	}
	for _, n := range b.nodes {
		if n.life.parts == nil || closed(n.life.ended) {
			continue
		}
		list := slices.Concat(n.life.parts.plane.health())
		if c := n.driver(); c != nil && c.progress.Load().problem(now) != "" {
			list = append(list, c.progress.Load().problem(now))
		}
		if len(list) > 0 {
			wrong["health of "+n.name] = fmt.Sprintf("%s is not healthy: %q", n.name, list)
		}
		if c := n.driver(); c != nil && leader != nil {
			if c.store.applied.Load() < n.life.goal {
				wrong["applied of "+n.name] = fmt.Sprintf("%s has not applied what is committed", n.name)
			} else {
				n.life.goal = leader.driver().status().Commit
			}
		}
	}
	maps.DeleteFunc(b.since, func(what string, _ time.Time) bool { return wrong[what] == "" })
	limit := b.calmLimit()
	for _, what := range sortedKeys(wrong) {
		if b.since[what].IsZero() {
			b.since[what] = now
		}
		if now.Sub(b.since[what]) > limit {
			b.fail("%s, for %s, and nothing was done to the nodes since %.3fs", wrong[what], now.Sub(b.since[what]), b.calm.Sub(bubbleEpoch).Seconds())
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.calls {
		begun := c.begun
		if b.calm.After(begun) {
			begun = b.calm
		}
		if b.failed == nil && !c.slow && now.Sub(begun) > callLimit {
			b.failed = fmt.Errorf("at %.3fs: %s has no answer since %.3fs", time.Since(bubbleEpoch).Seconds(), c.what, c.begun.Sub(bubbleEpoch).Seconds())
		}
	}
}

// calmLimit is how long something may be wrong.
func (b *bubble) calmLimit() time.Duration {
	limit := calmLimit
	for _, n := range b.servers() {
		limit = max(limit, calmLimit+slowWrites*time.Duration(n.sync.Load()))
	}
	return limit
}

// follow applies to the replica what the cluster has applied, and compares the logs.
func (b *bubble) follow() {
	var ahead *bubbleNode
	for _, n := range b.servers() {
		if c := n.driver(); c != nil && (ahead == nil || c.store.applied.Load() > ahead.driver().store.applied.Load()) {
			ahead = n
		}
	}
	if ahead == nil {
		return
	}
	c := ahead.driver()
	for b.replica.applied.Load() < c.store.applied.Load() && b.failure() == nil {
		list, err := c.store.entries(b.replica.applied.Load()+1, 1<<20)
		if err != nil || len(list) == 0 || list[0].Index != b.replica.applied.Load()+1 {
			b.fail("the log of %s cannot be followed from %d on: %v", ahead.name, b.replica.applied.Load()+1, err)
			return
		}
		for _, e := range list[:min(len(list), int(c.store.applied.Load()-list[0].Index)+1)] {
			b.observe(e)
		}
	}
	for _, n := range b.servers() {
		if c := n.driver(); c != nil && n != ahead {
			b.compareLog(n, c)
		}
	}
}

func (b *bubble) observe(e entry) {
	b.terms[e.Index] = digest(e)
	results, err := b.replica.write(nil, []entry{e}, e.Index)
	if err == nil {
		err = errors.Join(b.ledger.observe(b.replica, e, results[0]), b.inbox.observe(b.replica, e, results[0]))
	}
	if err != nil {
		b.fail("%v", err)
		return
	}
	b.checkAll(e, results[0])
}

func digest(e entry) string { return fmt.Sprintf("%d %d %x", e.Term, e.Kind, sha256.Sum256(e.Data)) }

// compareLog expects that the newest that a server has applied is what the
// others have there.
func (b *bubble) compareLog(n *bubbleNode, c *cluster) {
	list, err := c.store.entries(max(n.life.compared, 1), 1<<20)
	if err != nil {
		b.fail("%s: %v", n.name, err)
		return
	}
	for _, e := range list {
		if e.Index > c.store.applied.Load() {
			return
		}
		if b.terms[e.Index] != digest(e) {
			b.fail("%s has applied another entry %d than the others", n.name, e.Index)
			return
		}
		n.life.compared = e.Index + 1
	}
}

// checkAll expects that a tick of a job for all nodes runs on all that were there.
func (b *bubble) checkAll(e entry, res applied) {
	if e.Kind != entryCommand || res.Err != nil || res.repeated() {
		return
	}
	cmd, err := decodeCommand(e.Data)
	if err != nil {
		b.fail("entry %d: %v", e.Index, err)
		return
	}
	b.checkBars(e, cmd, res)
	for i, d := range cmd.Consume {
		j := b.ledger.jobs[d.Job]
		if !res.Accepted[i] || d.Due == 0 || len(res.Started[i]) == 0 || j == nil {
			continue
		}
		if len(j.def.Tags) > 0 {
			b.checkChosen(e, d, timeOf(cmd.Now))
			continue
		}
		for _, n := range b.nodes {
			there := !n.steady.IsZero() && n.steady.Add(calmBefore).Before(timeOf(cmd.Now)) && cmd.Now > b.moved[n.name]+int64(calmBefore)
			if _, drained := b.replica.settings.rules[ruleDrain][n.name]; drained {
				continue
			}
			if there && !slices.ContainsFunc(d.Targets, func(t target) bool { return t.Node == n.name }) {
				b.fail("entry %d: the tick of %s that was due at %.3fs was given to %v without %s, which was there since %.3fs", e.Index, j.def.Name,
					timeOf(d.Due).Sub(bubbleEpoch).Seconds(), d.Targets, n.name, n.steady.Sub(bubbleEpoch).Seconds())
			}
		}
	}
}

// checkBars notes what is held or drained, and what may start all the same.
func (b *bubble) checkBars(e entry, c *command, res applied) {
	if set := c.SetRule; set != nil {
		for i := range b.barred {
			if old := &b.barred[i]; old.to == 0 && old.set.Kind == set.Kind && old.set.Name == set.Name {
				old.to = e.Index
			}
		}
		if set.Rule != nil {
			b.barred = append(b.barred, bubbleBar{set: *set, from: e.Index})
		}
		if set.Kind == ruleDrain {
			b.moved[set.Name] = c.Now
		}
		b.hub.mu.Lock()
		b.hub.trace.add(traced{text: fmt.Sprintf("entry %d: %s %s, set %t", e.Index, set.Kind, set.Name, set.Rule != nil)})
		b.hub.mu.Unlock()
	}
	for i, d := range c.Consume {
		for _, id := range res.Started[i] {
			b.free[id] = d.Force
		}
	}
	for i, d := range c.Bind {
		b.free[d.Execution] = b.free[d.Execution] || res.Accepted[i]
	}
}

// checkStart expects that a process did not begin for an execution that was decided while its job was held or its node
// drained.
func (b *bubble) checkStart(p *bubbleProcess) {
	index := uint64(p.order.Execution >> keyBits)
	for _, bar := range b.barred {
		if b.free[p.order.Execution] || index < bar.from || bar.to != 0 && index > bar.to {
			continue
		}
		tick := b.ledger.jobs[b.ledger.started[p.order.Execution].job].def.Metadata["tick"]
		switch {
		case bar.set.Kind == ruleDrain && bar.set.Name != p.life.node.name, bar.set.Kind == ruleHold && bar.set.Rule.Metadata["tick"] != "" && bar.set.Rule.Metadata["tick"] != tick:
		default:
			b.fail("execution %d of %s began on %s, and from entry %d to %d there was %s %s", p.order.Execution, p.order.Job, p.life.node.name, bar.from, bar.to, bar.set.Kind, bar.set.Name)
		}
	}
}

// checkChosen expects that a tick for a number of nodes is not given to one that
// stands still while another could have it.
func (b *bubble) checkChosen(e entry, d decision, now time.Time) {
	if b.shaky {
		return
	}
	free := 0
	for _, n := range b.nodes {
		_, drained := b.replica.settings.rules[ruleDrain][n.name]
		if !drained && n.stands.IsZero() && n.runs() && n.begun.Add(calmBefore).Before(now) && !slices.ContainsFunc(d.Targets, func(t target) bool { return t.Node == n.name }) {
			free++
		}
	}
	for _, n := range b.nodes {
		if n.stands.IsZero() || now.Before(n.stands) {
			continue
		}
		chosen := slices.ContainsFunc(d.Targets, func(t target) bool { return t.Node == n.name })
		if chosen && free > 0 {
			n.given++
		}
		if n.given > givenLimit {
			b.fail("entry %d: %d runs were given to %s since it stands still at %.3fs", e.Index, n.given, n.name, n.stands.Sub(bubbleEpoch).Seconds())
		}
		if n.stands.Add(pauseLimit).Before(now) {
			b.reach("a tick for some nodes while one stands still")
			if free > 0 && chosen {
				b.fail("entry %d: a tick was given to %v at %.3fs, and %s stands still since %.3fs", e.Index, d.Targets, now.Sub(bubbleEpoch).Seconds(), n.name, n.stands.Sub(bubbleEpoch).Seconds())
			}
		}
	}
}

// finish brings the cluster to rest: nothing fires, runs or waits any more.
func (b *bubble) finish() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range b.plan.jobs {
			b.clients[0].write("POST", "/v1/jobs/"+tickJobName(i)+"/toggle?disabled=true", "stop "+tickJobName(i), nil)
		}
		for _, c := range b.clients {
			c.stopJobs()
		}
	}()
	b.until("end of the last toggles", 90*time.Second, func() bool { return closed(done) })
	b.until("rest", 60*time.Second, func() bool {
		var open, first uint64
		for _, n := range b.servers() {
			c := n.driver()
			if c == nil {
				return false
			}
			if st := c.status(); st.Last == 0 || st.Last != c.store.applied.Load() || first != 0 && c.store.applied.Load() != first {
				return false
			}
			first = c.store.applied.Load()
			if err := c.store.view("SELECT (SELECT count(*) FROM executions WHERE finished = 0) + (SELECT count(*) FROM pending) + (SELECT count(*) FROM notices)", nil, &open); err != nil || open > 0 {
				return false
			}
		}
		return true
	})
	b.follow()
}

// compare opens the databases of all servers, which have ended.
func (b *bubble) compare() {
	want, err := b.replica.dump()
	if err != nil {
		b.fail("%v", err)
	}
	for _, n := range b.servers() {
		s, err := openStore(n.dir)
		if err != nil {
			b.fail("%s: %v", n.name, err)
			return
		}
		if err := s.check(); err != nil {
			b.fail("%s: %v", n.name, err)
		}
		if got, err := s.dump(); err != nil || s.applied.Load() == b.replica.applied.Load() && got != want {
			b.fail("%s: its state is not what the log makes: %v\n%s", n.name, err, cmp.Diff(want, got))
		}
		for _, c := range b.clients {
			c.verify(n, s)
		}
		if err := s.close(); err != nil {
			b.fail("%s: %v", n.name, err)
		}
	}
	if err := errors.Join(b.ledger.settled(b.replica, time.Now().UnixNano()), b.inbox.settled()); err != nil {
		b.fail("%v", err)
	}
	b.compareProcesses()
}

// compareProcesses expects that what ran is on record as it was accepted, that
// nothing ran twice, and that what is on record as done by a process was.
func (b *bubble) compareProcesses() {
	ran := map[int64]*bubbleProcess{}
	attempts := map[string]int64{}
	for _, p := range b.processes {
		id := p.order.Execution
		on, ok := b.ledger.started[id]
		if !ok || on.due != p.order.ScheduledAt || on.attempt != p.order.Attempt {
			b.fail("execution %d ran on %s and is on record as %+v (%v)", id, p.life.node.name, on, ok)
		}
		if ran[id] != nil {
			b.fail("execution %d began on %s and again on %s", id, ran[id].life.node.name, p.life.node.name)
		}
		attempt := fmt.Sprint(on.job, " ", on.group, " ", on.due, " ", on.attempt, " ", on.slot)
		if other, ok := attempts[attempt]; ok {
			b.fail("executions %d and %d are one attempt, and both ran", other, id)
		}
		ran[id], attempts[attempt] = p, id
		b.checkStart(p)
		if want, ok := b.given[on.group]; ok && p.order.Params["version"] != want || on.cause == causeTick && p.order.Params != nil {
			b.fail("execution %d was given %v, and its group %q", id, p.order.Params, want)
		}
	}
	err := b.replica.viewEach("SELECT id, node, outcome FROM executions", nil, func(scan scanner) error {
		var id int64
		var node, outcome string
		if err := scan(&id, &node, &outcome); err != nil {
			return err
		}
		p := ran[id]
		switch {
		case outcome != outcomeSuccess && outcome != outcomeFailed:
			b.reach("outcome " + outcome)
		case p == nil || p.outcome != outcome || p.life.node.name != node:
			b.fail("execution %d is on record as %s on %s, and there was %+v", id, outcome, node, p)
		}
		return nil
	})
	if err != nil {
		b.fail("%v", err)
	}
	b.compareRules()
	b.did("%d log entries, %d executions, %d processes, %d ticks", b.replica.applied.Load(), len(b.ledger.started), len(b.processes), len(b.ledger.decisions))
}

// compareRules expects of what the processes did that no two groups ran at once where a job or a mutex forbids that, and
// that no node ran more at once than it takes. Executions that the leader has given up may go on.
func (b *bubble) compareRules() {
	for i, p := range b.processes {
		on, load := b.ledger.started[p.order.Execution], 0
		for _, q := range b.processes[:i] { // they began before it
			other := b.ledger.started[q.order.Execution]
			if on.closed || other.closed || !q.ended.IsZero() && !q.ended.After(p.begun) {
				continue
			}
			if q.life.node == p.life.node {
				load++
			}
			j, k := b.ledger.jobs[on.job], b.ledger.jobs[other.job]
			apart := on.job == other.job && j.def.Concurrency != "" && j.def.Concurrency != concurrencyAllow || j.def.Mutex != "" && j.def.Mutex == k.def.Mutex
			if apart && on.group != other.group {
				b.fail("execution %d of %s began at %s beside %d of %s, which began at %s and ended at %s", p.order.Execution, j.def.Name,
					p.begun.Sub(bubbleEpoch), q.order.Execution, k.def.Name, q.begun.Sub(bubbleEpoch), q.ended.Sub(bubbleEpoch))
			}
		}
		if limit := p.life.node.limit; limit > 0 && load >= limit {
			b.fail("%s ran %d at %s and takes %d at once", p.life.node.name, load+1, p.begun.Sub(bubbleEpoch), limit)
		}
	}
}

// ---- Clients

// A bubbleClient writes its own jobs through all nodes, and remembers what was
// acknowledged.
type bubbleClient struct {
	b      *bubble
	rnd    *rand.Rand
	host   string
	prefix string
	first  bool // it makes the jobs that fire all the time
	http   *http.Client
	serial int

	versions map[string]string // job → its version that was acknowledged; "": deleted
	groups   []int64           // of runs by hand that were acknowledged
	unsure   []job             // that may be there or not, and have not expired
}

// A bubbleCall is a request under way.
type bubbleCall struct {
	what  string
	begun time.Time
	slow  bool // its client takes its time
}

func newBubbleClient(b *bubble, i int) *bubbleClient {
	c := &bubbleClient{b: b, rnd: rand.New(rand.NewPCG(b.seed, uint64(i+1))), host: fmt.Sprintf("10.0.1.%d", i+1), prefix: fmt.Sprintf("c%d-", i), first: i == 0, versions: map[string]string{}}
	c.http = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 10, DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		return b.hub.dial(ctx, nil, c.host, addr)
	}}}
	return c
}

// call makes a request; status 0 means that there was no answer.
func (c *bubbleClient) call(ctx context.Context, n *bubbleNode, method, path, key string, body []byte, header ...string) (int, http.Header, string) {
	ctx, cancel := context.WithTimeout(ctx, 75*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+n.host+":8080"+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err.Error()
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	call := &bubbleCall{what: fmt.Sprintf("%s %s of %s at %s, key %q", method, path, c.prefix, n.name, key), begun: time.Now()}
	c.b.mu.Lock()
	c.b.calls[call] = true
	c.b.mu.Unlock()
	defer func() {
		c.b.mu.Lock()
		defer c.b.mu.Unlock()
		delete(c.b.calls, call)
	}()
	res, err := c.http.Do(req)
	if err != nil {
		return 0, nil, err.Error()
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, nil, err.Error()
	}
	return res.StatusCode, res.Header, string(text)
}

// write sends a write under one key, to one node after the other, until it is
// done. It is not to fail. at is who answered.
func (c *bubbleClient) write(method, path, key string, body []byte, header ...string) (at *life, answer http.Header, ok bool) {
	return c.writeAs(rand.New(rand.NewPCG(c.rnd.Uint64(), 0)), method, path, key, body, header...)
}

func (c *bubbleClient) writeAs(rnd *rand.Rand, method, path, key string, body []byte, header ...string) (at *life, answer http.Header, ok bool) {
	for tries := 1; c.b.failure() == nil; tries++ {
		n := c.b.nodes[rnd.IntN(len(c.b.nodes))]
		l := n.latest.Load()
		status, answer, text := c.call(context.Background(), n, method, path, key, body, header...)
		switch {
		case status >= 200 && status < 300:
			return l, answer, true
		case status != 0 && status != http.StatusServiceUnavailable && status != http.StatusGatewayTimeout && status != http.StatusBadGateway:
			c.b.fail("%s %s of %s at %s, try %d: status %d, %s; want it done, or 503, or 504", method, path, c.prefix, n.name, tries, status, text)
			return nil, nil, false
		}
		time.Sleep(time.Duration(50+rnd.IntN(300)) * time.Millisecond)
	}
	return nil, nil, false
}

// run makes calls until stop is closed, and the last one is done.
func (c *bubbleClient) run(stop <-chan struct{}) {
	defer c.http.CloseIdleConnections()
	if c.first {
		for i := range c.b.plan.jobs {
			c.putTickJob(i)
		}
	}
	for c.b.failure() == nil {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(c.rnd.IntN(600)) * time.Millisecond):
		}
		if c.b.leaving.Load() > 0 {
			c.putAtOnce()
		} else {
			c.act()
		}
	}
}

// putTickJob makes one of the jobs that fire all the time.
func (c *bubbleClient) putTickJob(i int) {
	j := shellJob(tickJobName(i), []string{"@every 1s", "*/2 * * * * *", "@every 2s", "*/3 * * * * *"}[i%4], []string{"0.1 0", "0.3 1", "1.5 0", "0 0", "4 0"}[i%5])
	j.Tags = []map[string]string{{"role": "x:1"}, nil, {"role": "x:2"}}[i%3]
	j.Retries, j.DisableAfter = []uint{0, 1, 0}[i%3], []uint{0, 6}[i%2]
	j.Concurrency = []string{concurrencyAllow, concurrencyForbid, concurrencyReplace, concurrencyQueue}[(uint64(i/2)+c.b.seed)%4]
	if c.b.seed%3 == 0 && i%2 == 0 {
		j.Mutex = "m"
	}
	j.Metadata = map[string]string{"tick": strconv.Itoa(i % 2)}
	c.write("POST", "/v1/jobs", "make "+j.Name, c.doc(j))
}

func (c *bubbleClient) doc(v any) []byte {
	doc, err := json.Marshal(v)
	if err != nil {
		c.b.fail("%v", err)
	}
	return doc
}

func (c *bubbleClient) nextKey() string {
	c.serial++
	return fmt.Sprint(c.prefix, c.serial)
}

// job is a new version of a job of the client's.
func (c *bubbleClient) job(name, version string) *job {
	j := shellJob(name, "@manually", "0.2 0")
	j.Tags = map[string]string{"role": "x:1"}
	j.Metadata = map[string]string{"version": version}
	return j
}

// own returns a job of the client's that is there, "" if there is none.
func (c *bubbleClient) own() string {
	list := slices.DeleteFunc(sortedKeys(c.versions), func(name string) bool { return c.versions[name] == "" })
	if len(list) == 0 {
		return ""
	}
	return list[c.rnd.IntN(len(list))]
}

func (c *bubbleClient) act() {
	acts := []struct {
		weight int
		do     func()
	}{
		{6, c.put}, {4, c.putAtOnce}, {4, func() { c.putAndLeave(unsureLimit) }}, {2, c.restore}, {3, c.toggle}, {3, c.runByHand}, {3, c.hold}, {2, c.drain}, {2, c.deleteJob}, {2, c.kill}, {2, c.list}, {1, c.watch},
	}
	total := 0
	for _, a := range acts {
		total += a.weight
	}
	draw := c.rnd.IntN(total)
	for _, a := range acts {
		if draw -= a.weight; draw < 0 {
			a.do()
			return
		}
	}
}

// put makes or changes a job, and reads it where it was written.
func (c *bubbleClient) put() {
	name, key := c.prefix+strconv.Itoa(c.rnd.IntN(6)), c.nextKey()
	at, _, ok := c.write("POST", "/v1/jobs", key, c.doc(c.job(name, key)))
	if !ok {
		return
	}
	c.versions[name] = key
	status, _, text := c.call(context.Background(), at.node, "GET", "/v1/jobs/"+name, "", nil)
	same := at.node.server && at.node.latest.Load() == at // it did not start anew on another disk
	if same && (status == http.StatusOK && !strings.Contains(text, `"`+key+`"`) || status == http.StatusNotFound) {
		c.b.fail("%s has acknowledged %s of %s, and then says: %d, %s", at.node.name, key, name, status, text)
	}
}

// putAtOnce sends one write several times at once.
func (c *bubbleClient) putAtOnce() {
	name, key := c.prefix+strconv.Itoa(c.rnd.IntN(6)), c.nextKey()
	doc := c.doc(c.job(name, key))
	var all sync.WaitGroup
	done := make([]bool, 2+c.rnd.IntN(3))
	for i := range done {
		rnd := rand.New(rand.NewPCG(c.rnd.Uint64(), 0))
		all.Go(func() { _, _, done[i] = c.writeAs(rnd, "POST", "/v1/jobs", key, doc) })
	}
	if c.b.leaving.Load() > 0 {
		c.b.reach("a repeated key during a leave")
	}
	all.Wait()
	if !slices.Contains(done, false) {
		c.versions[name] = key
	}
}

// putAndLeave does not wait for the answer. The job fires if it is there, for a while unless that is 0.
func (c *bubbleClient) putAndLeave(d time.Duration) {
	key := c.nextKey()
	j := c.job(c.prefix+"left-"+strconv.Itoa(c.serial), key)
	if j.Schedule = "@every 2s"; d > 0 {
		j.ExpiresAt = instant(time.Now().Add(d).UnixNano())
	}
	c.unsure = append(slices.DeleteFunc(c.unsure, expired), *j)
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(c.rnd.IntN(12_000))*time.Microsecond)
	defer cancel()
	c.call(ctx, c.b.nodes[c.rnd.IntN(len(c.b.nodes))], "POST", "/v1/jobs", key, c.doc(j))
}

func expired(j job) bool { return j.ExpiresAt != 0 && int64(j.ExpiresAt) < time.Now().UnixNano() }

// restore makes or changes several jobs at once.
func (c *bubbleClient) restore() {
	key := c.nextKey()
	var jobs []*job
	for i := range 1 + c.rnd.IntN(20) {
		jobs = append(jobs, c.job(c.prefix+"r"+strconv.Itoa(i), key))
		if i%4 == 3 {
			jobs[i].Schedule, jobs[i].ParentJob = "", jobs[i-1].Name
		}
	}
	form := "--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"jobs\"\r\n\r\n" + string(c.doc(jobs)) + "\r\n--XX--\r\n"
	if _, _, ok := c.write("POST", "/v1/restore", key, []byte(form), "Content-Type", "multipart/form-data; boundary=XX"); ok {
		for _, j := range jobs {
			c.versions[j.Name] = key
		}
	}
}

// toggle turns one of the jobs that fire off and on again.
func (c *bubbleClient) toggle() {
	if !c.first {
		return
	}
	off := "/v1/jobs/" + tickJobName(c.rnd.IntN(c.b.plan.jobs)) + "/toggle"
	on := off
	if c.rnd.IntN(2) == 0 {
		off, on = "/v1/disable?metadata[tick]=1", "/v1/enable?metadata[tick]=1"
	}
	for _, path := range []string{off, on} {
		c.write("POST", path, c.nextKey(), nil)
		time.Sleep(time.Duration(c.rnd.IntN(1_500)) * time.Millisecond)
	}
}

// hold keeps all jobs, or some of those that fire, from starting for a while.
func (c *bubbleClient) hold() {
	if !c.first {
		return
	}
	doc := c.doc(rule{Why: "a test", Metadata: []map[string]string{nil, {"tick": "0"}, {"tick": "1"}}[c.rnd.IntN(3)]})
	c.write("POST", "/v1/hold", c.nextKey(), doc)
	time.Sleep(time.Duration(c.rnd.IntN(4_000)) * time.Millisecond)
	c.write("POST", "/v1/release", c.nextKey(), doc)
	c.b.reach("a hold")
}

// drain drains a node for a while, if the cluster knows it.
func (c *bubbleClient) drain() {
	if !c.first {
		return
	}
	path := "/v1/members/" + c.b.nodes[c.rnd.IntN(len(c.b.nodes))].name
	for _, what := range []string{"/drain", "/undrain"} {
		key := c.nextKey()
		for status := 0; status != http.StatusOK && status != http.StatusNotFound && c.b.failure() == nil; {
			n := c.b.nodes[c.rnd.IntN(len(c.b.nodes))]
			status, _, _ = c.call(context.Background(), n, "POST", path+what, key, nil)
			time.Sleep(time.Duration(50+c.rnd.IntN(300)) * time.Millisecond)
		}
		time.Sleep(time.Duration(c.rnd.IntN(4_000)) * time.Millisecond)
	}
	c.b.reach("a drained node")
}

func (c *bubbleClient) runByHand() {
	name := c.own()
	if name == "" {
		return
	}
	version := c.versions[name]
	_, header, ok := c.write("POST", "/v1/jobs/"+name+"/run?force", c.nextKey(), c.doc(map[string]any{"params": map[string]string{"version": version}}))
	if !ok {
		return
	}
	if header.Get("Belfry-Group") == "" {
		c.b.reach("a run by hand that waits")
		return
	}
	group, err := strconv.ParseInt(header.Get("Belfry-Group"), 10, 64)
	if err != nil {
		c.b.fail("run %s: the group is %q: %v", name, header.Get("Belfry-Group"), err)
	}
	c.groups = append(c.groups, group)
	c.b.mu.Lock()
	defer c.b.mu.Unlock()
	c.b.given[group] = version
}

func (c *bubbleClient) deleteJob() {
	name := c.own()
	if name == "" || strings.Contains(name, "-r") { // others may depend on it
		return
	}
	if _, _, ok := c.write("DELETE", "/v1/jobs/"+name, c.nextKey(), nil); ok {
		c.versions[name] = ""
	}
}

// kill ends something that runs.
func (c *bubbleClient) kill() {
	n := c.b.nodes[c.rnd.IntN(len(c.b.nodes))]
	status, _, text := c.call(context.Background(), n, "GET", "/v1/busy", "", nil)
	var busy []executionView
	if status != http.StatusOK || json.Unmarshal([]byte(text), &busy) != nil || len(busy) == 0 {
		return
	}
	v := busy[c.rnd.IntN(len(busy))]
	status, _, text = c.call(context.Background(), n, "POST", "/v1/jobs/"+v.JobName+"/executions/"+v.ID+"/kill", c.nextKey(), nil)
	if status == http.StatusInternalServerError {
		c.b.fail("kill of %s at %s: %s", v.ID, n.name, text)
	}
}

// list reads long lists, sometimes slowly, and sometimes not to the end.
func (c *bubbleClient) list() {
	n := c.b.nodes[c.rnd.IntN(len(c.b.nodes))]
	path := []string{"/v1/jobs", "/v1/executions", "/v1/jobs/" + tickJobName(0) + "/executions", "/v1/jobs/" + tickJobName(0) + "/ticks?_end=100000", "/v1/members", "/v1/backup"}[c.rnd.IntN(6)]
	c.read(n, path, 20*time.Second)
}

// watch follows the events for a while.
func (c *bubbleClient) watch() {
	c.read(c.b.nodes[c.rnd.IntN(len(c.b.nodes))], "/v1/events", time.Duration(c.rnd.IntN(4_000))*time.Millisecond)
}

func (c *bubbleClient) read(n *bubbleNode, path string, patience time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+n.host+":8080"+path, nil)
	if err != nil {
		c.b.fail("%v", err)
		return
	}
	res, err := c.http.Do(req)
	if err != nil {
		return
	}
	defer res.Body.Close()
	part := make([]byte, 4<<10)
	for pause := time.Duration(c.rnd.IntN(20)) * time.Millisecond; ; time.Sleep(pause) {
		if _, err := res.Body.Read(part); err != nil {
			break
		}
	}
	if res.StatusCode == http.StatusInternalServerError {
		c.b.fail("GET %s at %s: status %d", path, n.name, res.StatusCode)
	}
}

// stopJobs disables what the client has made that fires.
func (c *bubbleClient) stopJobs() {
	defer c.http.CloseIdleConnections()
	for _, j := range c.unsure {
		if !expired(j) {
			c.write("POST", "/v1/jobs", "end "+j.Name, c.doc(c.job(j.Name, "end")))
		}
	}
}

// verify looks for all that was acknowledged in the database of a server.
func (c *bubbleClient) verify(n *bubbleNode, s *store) {
	for _, name := range sortedKeys(c.versions) {
		row, err := s.job(name)
		if want := c.versions[name]; want == "" && !errors.Is(err, errNoJob) || want != "" && (err != nil || !strings.Contains(jsonText(row.Metadata), `"`+want+`"`)) {
			b := c.b
			b.fail("%s: job %s is %+v, %v, want the acknowledged version %q", n.name, name, row, err, want)
		}
	}
	for _, group := range c.groups {
		if on, ok := c.b.ledger.started[group]; !ok || on.group != group {
			c.b.fail("group %d of a run by hand was acknowledged and is not on record", group)
		}
	}
}

// ---- Clusters of real processes

const (
	fleetJobs     = 20 // that fire each second
	fleetClients  = 3  // that write at the same time, each its own jobs
	fleetPatience = time.Minute
	fleetLost     = "10s"                // the least that --lost-after takes
	burstClients  = 64                   // that make the jobs of a burst
	burstTime     = 5 * time.Millisecond // the most that one takes
)

// fleet is a cluster of real servers, what was done to it, and what it said.
type fleet struct {
	t       *testing.T
	dir     string
	rnd     *rand.Rand
	nodes   []*fleetNode
	clients []*fleetClient
	began   time.Time
	history []string
}

type fleetNode struct {
	name, bind, http string
	netns            string // network namespace, "": the test's own
	args             []string
	proc             *process // the last one
	down             bool
}

// newFleet starts servers that found a cluster together, in the network
// namespaces of places if there are any.
func newFleet(t *testing.T, seed uint64, size int, places []netPlace, args ...string) *fleet {
	t.Helper()
	f := &fleet{t: t, dir: t.ArtifactDir(), rnd: rand.New(rand.NewPCG(seed, 0)), began: time.Now()}
	args = append(args, sharedKey(t))
	for i := range size {
		n := &fleetNode{name: fmt.Sprintf("n%d", i+1), args: args}
		if places != nil {
			n.netns, n.bind, n.http = places[i].name, places[i].addr+":8946", places[i].addr+":8080"
		} else {
			n.bind, n.http = freeAddr(t), freeAddr(t)
		}
		f.nodes = append(f.nodes, n)
	}
	t.Cleanup(f.explain)
	for _, n := range f.nodes {
		f.start(n)
	}
	for i := range fleetClients {
		f.clients = append(f.clients, &fleetClient{fleet: f, rnd: rand.New(rand.NewPCG(seed, uint64(i+1))), prefix: fmt.Sprintf("c%d-", i), versions: map[string]int{}})
	}
	f.leader()
	return f
}

// freeAddr is an address that nobody listened at a moment ago: servers that
// must know each other's, and keep theirs when they start again, cannot each
// take any.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// each calls fn for all nodes at once.
func (f *fleet) each(fn func(*fleetNode)) {
	var all sync.WaitGroup
	for _, n := range f.nodes {
		all.Go(func() { fn(n) })
	}
	all.Wait()
}

func (f *fleet) start(n *fleetNode) {
	f.t.Helper()
	args := append([]string{"agent", "--server", fmt.Sprintf("--bootstrap-expect=%d", len(f.nodes)), "--node-name=" + n.name, "--http-addr=" + n.http, "--bind-addr=" + n.bind,
		"--data-dir=data", "--executions-keep=" + strconv.Itoa(roundKeep), "--lost-after=" + fleetLost}, n.args...)
	for _, other := range f.nodes {
		args = append(args, "--retry-join="+other.bind)
	}
	dir := filepath.Join(f.dir, n.name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		f.t.Error(err)
	}
	cmd := program(f.t, dir, nil, args...)
	if n.netns != "" {
		ip, err := exec.LookPath("ip")
		if err != nil {
			f.t.Error(err)
		}
		cmd.Path, cmd.Args = ip, append([]string{"ip", "netns", "exec", n.netns, cmd.Path}, cmd.Args[1:]...)
	}
	n.proc, n.down = launch(f.t, cmd), false
}

func (f *fleet) kill(n *fleetNode) {
	n.down = true
	n.proc.kill()
}

// did notes what was done.
func (f *fleet) did(format string, args ...any) {
	f.history = append(f.history, fmt.Sprintf("%6.2fs %s", time.Since(f.began).Seconds(), fmt.Sprintf(format, args...)))
}

// explain prints, after a failure, what was done and what the servers logged.
func (f *fleet) explain() {
	if !f.t.Failed() {
		return
	}
	f.t.Logf("what was done:\n%s", strings.Join(f.history, "\n"))
	for _, n := range f.nodes {
		f.t.Logf("the last log of %s:\n%s", n.name, n.proc.log.tail(40))
	}
}

// tail returns the last lines.
func (b *lockedBuffer) tail(lines int) string {
	list := strings.Split(b.String(), "\n")
	return strings.Join(list[max(0, len(list)-lines):], "\n")
}

// await polls until ok, or fails.
func (f *fleet) await(what string, patience time.Duration, ok func() bool) {
	f.t.Helper()
	deadline, tick := time.After(patience), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			f.t.Fatalf("no %s within %s", what, patience)
		}
	}
}

// pass lets the cluster work for a while.
func (f *fleet) pass(d time.Duration) { <-time.After(d) }

// between is a random time.
func (f *fleet) between(low, high time.Duration) time.Duration {
	return low + time.Duration(f.rnd.Int64N(int64(high-low)))
}

// leader waits until one of the given nodes leads, of all if none is given.
func (f *fleet) leader(among ...*fleetNode) (leader *fleetNode) {
	f.t.Helper()
	if len(among) == 0 {
		among = f.nodes
	}
	f.await("leader", fleetPatience, func() bool {
		i := slices.IndexFunc(among, func(n *fleetNode) bool { return !n.down && n.leads() })
		if i >= 0 {
			leader = among[i]
		}
		return i >= 0
	})
	return leader
}

func (n *fleetNode) leads() bool {
	status, _, _ := n.call("GET", "/v1/isleader", "", nil)
	return status == http.StatusOK
}

// impatient gives up on a server that is stopped or cut off.
var impatient = &http.Client{Timeout: 4 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: burstClients}}

// call makes a request; status 0 means that there was no answer.
func (n *fleetNode) call(method, path, key string, in any) (status int, header http.Header, text string) {
	doc, err := json.Marshal(in)
	if err != nil {
		return 0, nil, err.Error()
	}
	if in == nil {
		doc = nil
	}
	req, err := http.NewRequest(method, "http://"+n.http+path, bytes.NewReader(doc))
	if err != nil {
		return 0, nil, err.Error()
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	res, err := impatient.Do(req)
	if err != nil {
		return 0, nil, err.Error()
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, nil, err.Error()
	}
	return res.StatusCode, res.Header, string(body)
}

// write sends a write under one key, to one node after the other, until it is
// done. It is not to fail.
func (f *fleet) write(rnd *rand.Rand, method, path, key string, in any) (header http.Header, ok bool) {
	deadline := time.Now().Add(fleetPatience)
	for tries := 1; ; tries++ {
		n := f.nodes[rnd.IntN(len(f.nodes))]
		status, header, text := n.call(method, path, key, in)
		switch {
		case status >= 200 && status < 300:
			return header, true
		case status != 0 && status != http.StatusServiceUnavailable && status != http.StatusGatewayTimeout:
			f.t.Errorf("%s %s at %s, try %d: status %d, %s; want it done, or 503, or 504", method, path, n.name, tries, status, text)
			return nil, false
		case time.Now().After(deadline):
			f.t.Errorf("%s %s: not done after %d tries, the last at %s: status %d, %s", method, path, tries, n.name, status, text)
			return nil, false
		}
		<-time.After(50 * time.Millisecond)
	}
}

// fleetClient writes its own jobs through all nodes and remembers what was
// acknowledged.
type fleetClient struct {
	fleet    *fleet
	rnd      *rand.Rand
	prefix   string
	serial   int
	versions map[string]int // of each job, the last that was acknowledged
	groups   []int64        // of runs by hand that were acknowledged
}

// writeUntil writes until stop is closed and the last write is acknowledged.
func (c *fleetClient) writeUntil(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(c.rnd.Int64N(int64(400 * time.Millisecond)))):
		}
		if !c.writeOne() {
			return
		}
	}
}

// writeOne makes a new job, changes one, or runs one.
func (c *fleetClient) writeOne() bool {
	c.serial++
	key := fmt.Sprint(c.prefix, c.serial)
	name := c.prefix + strconv.Itoa(c.rnd.IntN(1+len(c.versions)))
	if c.versions[name] != 0 && c.rnd.IntN(4) == 0 {
		header, ok := c.fleet.write(c.rnd, "POST", "/v1/jobs/"+name+"/run", key, nil)
		if !ok {
			return false
		}
		group, err := strconv.ParseInt(header.Get("Belfry-Group"), 10, 64)
		if err != nil {
			c.fleet.t.Errorf("run %s: the group is %q: %v", name, header.Get("Belfry-Group"), err)
		}
		c.groups = append(c.groups, group)
		return true
	}
	j := shellJob(name, "@manually", c.fleet.note(""))
	j.Tags = map[string]string{"server": "true:1"}
	j.Metadata = map[string]string{"version": strconv.Itoa(c.serial)}
	if _, ok := c.fleet.write(c.rnd, "POST", "/v1/jobs", key, j); !ok {
		return false
	}
	c.versions[name] = c.serial
	return true
}

func (f *fleet) evidence() string { return filepath.Join(f.dir, "evidence") }

// note is a command that writes down what runs.
func (f *fleet) note(then string) string {
	return `echo "$BELFRY_EXECUTION $BELFRY_SCHEDULED_AT $BELFRY_ATTEMPT $BELFRY_NODE" >> ` + f.evidence() + then
}

func tickJobName(i int) string { return fmt.Sprintf("tick-%d", i) }

// load makes the jobs that fire each second, and starts the clients. What is
// returned stops the clients and waits for their last write.
func (f *fleet) load() (stop func()) {
	f.t.Helper()
	for i := range fleetJobs {
		j := shellJob(tickJobName(i), []string{"* * * * * *", "@every 1s"}[i%2], f.note([]string{"", "; exit 1", "; sleep 0.4", "; sleep 2", ""}[i%5]))
		j.Tags = map[string]string{"server": "true:1"}
		if i%5 == 4 {
			j.Tags["server"] = "true:2"
		}
		j.Retries = []uint{0, 1, 0, 0, 0}[i%5]
		j.Concurrency = pick(f.rnd, concurrencyAllow, concurrencyForbid)
		if _, ok := f.write(f.rnd, "POST", "/v1/jobs", "make "+j.Name, j); !ok {
			f.t.FailNow()
		}
	}
	quit := make(chan struct{})
	var writing sync.WaitGroup
	for _, c := range f.clients {
		writing.Go(func() { c.writeUntil(quit) })
	}
	return func() {
		close(quit)
		writing.Wait()
	}
}

// settle disables the jobs that fire, waits until nothing runs or waits, and
// stops all servers at a moment when they have applied the same.
func (f *fleet) settle() {
	f.t.Helper()
	f.leader()
	f.did("disable all")
	for i := range fleetJobs {
		if _, ok := f.write(f.rnd, "POST", "/v1/jobs/"+tickJobName(i)+"/toggle", "stop "+tickJobName(i), nil); !ok {
			f.t.FailNow()
		}
	}
	f.await("empty /v1/busy on all nodes", fleetPatience, func() bool {
		return !slices.ContainsFunc(f.nodes, func(n *fleetNode) bool {
			status, _, text := n.call("GET", "/v1/busy", "", nil)
			return status != http.StatusOK || text != "[]"
		})
	})
	f.did("rest")
	f.verify()
	f.await("moment at which all servers have applied the same", fleetPatience, func() bool {
		f.each(func(n *fleetNode) { n.signal(f.t, syscall.SIGSTOP) })
		first, pending := f.applied(f.nodes[0])
		for _, n := range f.nodes {
			if at, _ := f.applied(n); at != first || pending > 0 {
				f.each(func(n *fleetNode) { n.signal(f.t, syscall.SIGCONT) })
				return false
			}
		}
		f.each(f.kill)
		return true
	})
}

func (n *fleetNode) signal(t *testing.T, s syscall.Signal) {
	if err := n.proc.cmd.Process.Signal(s); err != nil {
		t.Errorf("%s to %s: %v", s, n.name, err)
	}
}

// applied looks into the database of a server that stands still.
func (f *fleet) applied(n *fleetNode) (index uint64, pending int) {
	db, err := sql.Open("sqlite", "file:"+filepath.Join(f.dir, n.name, "data", "belfry.db")+"?mode=ro")
	if err != nil {
		f.t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRow("SELECT applied_index, (SELECT count(*) FROM pending) FROM cluster").Scan(&index, &pending); err != nil {
		f.t.Fatal(err)
	}
	return index, pending
}

// verify asks each server for all that was acknowledged, and for what became
// of each tick.
func (f *fleet) verify() {
	f.t.Helper()
	for _, n := range f.nodes {
		for _, c := range f.clients {
			for _, name := range sortedKeys(c.versions) {
				var row jobRow
				status, _, text := n.call("GET", "/v1/jobs/"+name, "", nil)
				err := json.Unmarshal([]byte(text), &row)
				if want := strconv.Itoa(c.versions[name]); status != http.StatusOK || err != nil || !strings.Contains(jsonText(row.Metadata), `"`+want+`"`) {
					f.t.Errorf("GET %s at %s: status %d, %s, %v, want the acknowledged version %s", name, n.name, status, text, err, want)
				}
			}
		}
		for i := range fleetJobs {
			f.verifyTicks(n, tickJobName(i))
		}
	}
}

// verifyTicks expects an outcome, and a reason if it did not run, for each
// second from the first tick of a job to the last.
func (f *fleet) verifyTicks(n *fleetNode, name string) {
	f.t.Helper()
	status, _, text := n.call("GET", "/v1/jobs/"+name+"/ticks?_end=100000", "", nil)
	var doc struct{ Ticks []tickView }
	if err := json.Unmarshal([]byte(text), &doc); status != http.StatusOK || err != nil || len(doc.Ticks) == 0 {
		f.t.Errorf("the ticks of %s at %s: status %d, %.200s, %v", name, n.name, status, text, err)
		return
	}
	expected := doc.Ticks[len(doc.Ticks)-1].Due
	for _, t := range slices.Backward(doc.Ticks) {
		if !t.Due.Equal(expected) {
			f.t.Errorf("the ticks of %s at %s: %+v, want one of %s", name, n.name, t, expected)
			return
		}
		expected = t.Due.Add(time.Second)
		if t.Until != nil {
			expected = t.Until.Add(time.Second)
		}
		if ran := t.Outcome == outcomeRan || t.Outcome == outcomeLate; ran && len(t.Executions) == 0 || !ran && t.Reason == "" {
			f.t.Errorf("a tick of %s at %s: %+v, want executions if it ran, else a reason", name, n.name, t)
		}
	}
}

// compare opens the databases of all servers, which have ended: each in order,
// all the same, and what their common log makes of an empty one, with one
// outcome for each tick; and the evidence of the jobs fits it.
func (f *fleet) compare() {
	f.t.Helper()
	r := &lives{t: f.t, dir: f.dir, ledger: newLedger()}
	var err error
	if r.replica, err = openStore(simTempDir(f.t)); err != nil {
		f.t.Fatal(err)
	}
	defer r.replica.close()
	for _, n := range f.nodes {
		s, err := openStore(filepath.Join(f.dir, n.name, "data"))
		if err != nil {
			f.t.Fatalf("%s: %v", n.name, err)
		}
		if err := s.check(); err != nil {
			f.t.Errorf("%s: %v", n.name, err)
		}
		r.replay(s)
		if n == f.nodes[0] {
			f.compareEvidence(s, r.ledger)
		}
		if err := s.close(); err != nil {
			f.t.Error(err)
		}
	}
	if err := r.ledger.settled(r.replica, time.Now().UnixNano()); err != nil {
		f.t.Error(err)
	}
	f.t.Logf("%d log entries, %d executions, %d ticks decided", r.replica.applied.Load(), len(r.ledger.started), len(r.ledger.decisions))
}

// compareEvidence expects that what ran is on record, that nothing ran twice,
// and that what is on record as run to its end has left its mark.
func (f *fleet) compareEvidence(s *store, l *ledger) {
	f.t.Helper()
	doc, err := os.ReadFile(f.evidence())
	if err != nil {
		f.t.Fatal(err)
	}
	seen, attempts := map[int64]bool{}, map[string]string{}
	for line := range strings.Lines(string(doc)) {
		w := strings.Fields(line)
		if len(w) != 4 {
			f.t.Errorf("evidence %q is no line of a job", line)
			continue
		}
		id, err := strconv.ParseInt(strings.TrimSuffix(w[0], "-"+w[3]), 10, 64)
		on, ok := l.started[id]
		due, err2 := time.Parse(time.RFC3339Nano, w[1])
		if err != nil || err2 != nil || !ok || due.UnixNano() != on.due || w[2] != strconv.Itoa(on.attempt) {
			f.t.Errorf("evidence %q is on record as %+v (%v), %v, %v", line, on, ok, err, err2)
		}
		attempt := fmt.Sprint(on.job, " ", on.group, " ", w[1], " ", w[2], " ", on.slot)
		if seen[id] || attempts[attempt] != "" {
			f.t.Errorf("evidence %q comes twice, before as %q", line, attempts[attempt])
		}
		seen[id], attempts[attempt] = true, line
	}
	outcomes := map[string]int{}
	err = s.viewEach("SELECT id, node, outcome FROM executions", nil, func(scan scanner) error {
		var id int64
		var node, outcome string
		err := scan(&id, &node, &outcome)
		outcomes[outcome]++
		if ran := outcome == outcomeSuccess || outcome == outcomeFailed; ran && !seen[id] {
			f.t.Errorf("execution %s is on record as %s and left no evidence", executionName(id, node), outcome)
		}
		return err
	})
	if err != nil {
		f.t.Error(err)
	}
	byHand := 0
	for _, c := range f.clients {
		for _, group := range c.groups {
			if on, ok := l.started[group]; !ok || on.group != group {
				f.t.Errorf("group %d of a run by hand was acknowledged and is not on record", group)
			}
			byHand++
		}
	}
	for _, on := range l.started {
		if on.cause == causeHand && on.attempt == 1 && on.slot == 0 {
			byHand--
		}
	}
	if byHand != 0 {
		f.t.Errorf("%d more runs by hand were acknowledged than are on record", byHand)
	}
	f.t.Logf("%d lines of evidence; outcomes %v", len(seen), outcomes)
}

// seedOf returns the seed of a run, and says how to repeat it.
func seedOf(t *testing.T) uint64 {
	seed := *faultsSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("repeat it with -run '^%s$' -faults.seed=%d", t.Name(), seed)
	return seed
}

// TestCluster_Faults: three real servers are killed, stopped, and started
// again, while jobs fire each second and clients write through all of them.
// Afterwards every due tick ran or has a reason, by the evidence of the jobs
// none ran twice, nothing counts as running, what was acknowledged is there,
// and the databases are equal.
func TestCluster_Faults(t *testing.T) {
	if testing.Short() {
		t.Skip("takes more than a minute")
	}
	f := newFleet(t, seedOf(t), 3, nil)
	stop := f.load()
	for range *faults {
		f.pass(f.between(500*time.Millisecond, 2*time.Second))
		f.fault()
		f.leader()
	}
	f.pass(2 * time.Second)
	stop()
	f.settle()
	f.compare()
}

// fault does one bad thing, and ends it.
func (f *fleet) fault() {
	leader := f.leader()
	follower := pick(f.rnd, slices.DeleteFunc(slices.Clone(f.nodes), func(n *fleetNode) bool { return n == leader })...)
	switch f.rnd.IntN(5) {
	case 0, 1:
		f.outage(leader)
	case 2:
		f.outage(follower)
	case 3:
		n := pick(f.rnd, leader, follower)
		f.did("stop %s, leader is %s", n.name, leader.name)
		n.signal(f.t, syscall.SIGSTOP)
		f.pass(5 * time.Second)
		n.signal(f.t, syscall.SIGCONT)
	default:
		f.outage(f.nodes...)
	}
}

// outage kills nodes and starts them again a while later.
func (f *fleet) outage(nodes ...*fleetNode) {
	for _, n := range nodes {
		f.did("kill %s, leads: %v", n.name, n.leads())
		f.kill(n)
	}
	f.pass(f.between(100*time.Millisecond, 4*time.Second))
	for _, n := range nodes {
		f.did("start %s", n.name)
		f.start(n)
	}
}

// ---- Partitions

// netPlace is a network namespace and its address.
type netPlace struct{ name, addr string }

// nowhere is a hardware address that no card has: what is sent there is lost
// without a word, as in a network that is cut.
const nowhere = "02:00:00:00:00:99"

// newNet makes network namespaces on a bridge, which the test itself is on too.
func newNet(t *testing.T, size int) (places []netPlace) {
	t.Helper()
	id := os.Getpid()%10_000*10 + size // a name is free again only a while after it was removed
	bridge, net := fmt.Sprintf("bf%d", id), fmt.Sprintf("10.213.%d.", id%250)
	undo := func(args ...string) { t.Cleanup(func() { exec.Command("ip", args...).Run() }) } // what fails is not there
	undo("link", "del", bridge)
	ip(t, "link add "+bridge+" type bridge")
	ip(t, "addr add "+net+"254/24 dev "+bridge)
	ip(t, "link set "+bridge+" up")
	for i := range size {
		p, port := netPlace{fmt.Sprintf("belfry-%d-%d", id, i+1), net + strconv.Itoa(i+1)}, fmt.Sprintf("%s-%d", bridge, i+1)
		undo("netns", "del", p.name)
		ip(t, "netns add "+p.name)
		ip(t, "link add "+port+" type veth peer name eth0 netns "+p.name)
		ip(t, "link set "+port+" master "+bridge+" up")
		ip(t, "-n "+p.name+" addr add "+p.addr+"/24 dev eth0")
		ip(t, "-n "+p.name+" link set eth0 up")
		ip(t, "-n "+p.name+" link set lo up")
		places = append(places, p)
	}
	return places
}

func ip(t *testing.T, args string) {
	t.Helper()
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v, %s", args, err, out)
	}
}

func (n *fleetNode) addr() string {
	host, _, _ := net.SplitHostPort(n.bind)
	return host
}

// cut loses what nodes send to others, but not what those send to them.
func (f *fleet) cut(from, to []*fleetNode) {
	for _, a := range from {
		for _, b := range to {
			if a != b {
				ip(f.t, fmt.Sprintf("-n %s neigh replace %s lladdr %s dev eth0 nud permanent", a.netns, b.addr(), nowhere))
			}
		}
	}
}

func (f *fleet) cutBoth(a, b []*fleetNode) {
	f.cut(a, b)
	f.cut(b, a)
}

// heal ends all cuts.
func (f *fleet) heal() {
	for _, n := range f.nodes {
		ip(f.t, "-n "+n.netns+" neigh flush dev eth0 nud permanent")
	}
}

// TestCluster_Partitions: the network between real servers is cut in all the
// ways that matter while jobs fire each second and clients write. Who is with a
// majority goes on, who is not stops, and nobody else is deposed; afterwards
// all is as in TestCluster_Faults.
func TestCluster_Partitions(t *testing.T) {
	if !*netns {
		t.Skip("cuts the network between network namespaces of its own: run it as root with -netns, where ip of iproute2 is")
	}
	for _, size := range []int{3, 5} {
		t.Run(strconv.Itoa(size), func(t *testing.T) {
			f := newFleet(t, seedOf(t), size, newNet(t, size), "--insecure")
			stop := f.load()
			for _, name := range sortedKeys(partitions) {
				f.pass(f.between(time.Second, 2*time.Second))
				f.partition(name)
			}
			f.pass(2 * time.Second)
			stop()
			f.settle()
			f.compare()
		})
	}
}

// A partition cuts the network, given the leader and the followers in random
// order. It returns who goes on as one: nobody, if there is no majority.
type partition func(f *fleet, leader *fleetNode, others []*fleetNode) (majority []*fleetNode)

var partitions = map[string]partition{
	"the leader is cut off": func(f *fleet, leader *fleetNode, others []*fleetNode) []*fleetNode {
		f.cutBoth([]*fleetNode{leader}, others)
		return others
	},
	"the leader reaches nobody": func(f *fleet, leader *fleetNode, others []*fleetNode) []*fleetNode {
		f.cut([]*fleetNode{leader}, others)
		return others
	},
	"nobody reaches the leader": func(f *fleet, leader *fleetNode, others []*fleetNode) []*fleetNode {
		f.cut(others, []*fleetNode{leader})
		return others
	},
	"the leader does not reach a follower": func(f *fleet, leader *fleetNode, others []*fleetNode) []*fleetNode {
		f.cut([]*fleetNode{leader}, others[:1])
		return append(slices.Clone(others[1:]), leader)
	},
	"a follower does not reach the leader": func(f *fleet, leader *fleetNode, others []*fleetNode) []*fleetNode {
		f.cut(others[:1], []*fleetNode{leader})
		return append(slices.Clone(others[1:]), leader)
	},
	"the leader is with the smaller part": func(f *fleet, leader *fleetNode, others []*fleetNode) []*fleetNode {
		n := (len(f.nodes) - 1) / 2 // of the smaller part
		f.cutBoth(append(slices.Clone(others[:n-1]), leader), others[n-1:])
		return others[n-1:]
	},
	"the leader is with the larger part": func(f *fleet, leader *fleetNode, others []*fleetNode) []*fleetNode {
		n := len(f.nodes) / 2 // of the followers that stay with it
		larger := append(slices.Clone(others[:n]), leader)
		f.cutBoth(larger, others[n:])
		return larger
	},
	"two parts meet in one follower": func(f *fleet, leader *fleetNode, others []*fleetNode) []*fleetNode {
		n := len(others) / 2
		f.cutBoth(append(slices.Clone(others[1:n]), leader), others[n:])
		return f.nodes
	},
	"everybody is alone": func(f *fleet, leader *fleetNode, others []*fleetNode) []*fleetNode {
		f.cut(f.nodes, f.nodes)
		return nil
	},
}

// partition cuts the network for a while.
func (f *fleet) partition(name string) {
	f.t.Helper()
	leader := f.leader()
	others := slices.DeleteFunc(slices.Clone(f.nodes), func(n *fleetNode) bool { return n == leader })
	f.rnd.Shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] })
	majority := partitions[name](f, leader, others)
	end := time.After(f.between(5*time.Second, 16*time.Second))
	f.did("%s: leader %s, others %s", name, leader.name, others[0].name)
	if !slices.Contains(majority, leader) {
		f.await("end of the office of "+leader.name+", where "+name, fleetPatience, func() bool { return !leader.leads() })
		f.did("%s leads no more", leader.name)
	}
	if majority != nil {
		f.did("%s leads", f.leader(majority...).name)
	}
	<-end
	switch leads := leader.leads(); {
	case leads != slices.Contains(majority, leader) && len(majority) < len(f.nodes):
		f.t.Errorf("%s: %s leads: %v, want %v", name, leader.name, leads, !leads)
	case majority == nil && slices.ContainsFunc(f.nodes, (*fleetNode).leads):
		f.t.Errorf("%s: somebody leads", name)
	}
	f.heal()
	f.leader()
	f.did("healed")
}

// ---- Failover

// TestCluster_Failover: the leader is killed again and again, and it is
// measured how long it takes until another leads, and until the first tick
// after that has run.
func TestCluster_Failover(t *testing.T) {
	if *kills == 0 {
		t.Skip("measures: run it with -kills=50 on a quiet machine")
	}
	f := newFleet(t, seedOf(t), 3, nil)
	stop := f.load()
	defer stop()
	var elected, fired []time.Duration
	for range *kills {
		leader := f.leader()
		f.await("three servers in touch", fleetPatience, func() bool {
			return !slices.ContainsFunc(f.nodes, func(n *fleetNode) bool {
				status, _, _ := n.call("GET", "/health", "", nil)
				return status != http.StatusOK
			})
		})
		f.pass(f.between(time.Second, 3*time.Second))
		before := f.evidenceSize()
		killed := time.Now()
		f.kill(leader)
		f.leader()
		elected = append(elected, time.Since(killed))
		f.await("tick", fleetPatience, func() bool { return f.ranSince(before, killed) })
		fired = append(fired, time.Since(killed))
		f.start(leader)
	}
	for what, list := range map[string][]time.Duration{"a new leader": elected, "the first tick after the kill": fired} {
		slices.Sort(list)
		t.Logf("%s: p50 %s, p90 %s, max %s of %d", what, list[len(list)/2].Round(time.Millisecond), list[len(list)*9/10].Round(time.Millisecond), list[len(list)-1].Round(time.Millisecond), len(list))
	}
	load, _ := os.ReadFile("/proc/loadavg") // not on every system
	t.Logf("load of the machine: %s", load)
}

func (f *fleet) evidenceSize() int64 {
	info, err := os.Stat(f.evidence())
	if err != nil {
		return 0
	}
	return info.Size()
}

// ranSince reports whether the evidence behind an offset has a run that fell
// due after a time.
func (f *fleet) ranSince(offset int64, after time.Time) bool {
	doc, err := os.ReadFile(f.evidence())
	if err != nil || int64(len(doc)) < offset {
		return false
	}
	for line := range strings.Lines(string(doc[offset:])) {
		if w := strings.Fields(line); len(w) == 4 {
			if due, err := time.Parse(time.RFC3339Nano, w[1]); err == nil && due.After(after) {
				return true
			}
		}
	}
	return false
}

// TestWatch_Nodes: any node tells what happens, whoever was asked for it; and
// nobody who watches holds up a node that stops.
func TestWatch_Nodes(t *testing.T) {
	t.Parallel()
	bind, key := freeAddr(t), sharedKey(t)
	node := func(name string, args ...string) *process {
		args = append([]string{"agent", key, "--node-name=" + name, "--http-addr=127.0.0.1:0", "--data-dir=data"}, args...)
		return launch(t, program(t, t.TempDir(), nil, args...))
	}
	first := node("n1", "--server", "--bootstrap-expect=1", "--bind-addr="+bind)
	nodes := []*process{first, node("n2", "--server", "--bind-addr=127.0.0.1:0", "--retry-join="+bind), node("n3", "--bind-addr=127.0.0.1:0", "--retry-join="+bind)}
	var heard [3]lockedBuffer
	var streams sync.WaitGroup
	for i, p := range nodes {
		p.eventually("a node of the cluster", func() bool { status, _ := p.get("/v1/leader", nil); return status == http.StatusOK })
		resp, err := http.Get(p.url + "/v1/events")
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(resp, err)
		}
		streams.Go(func() {
			defer resp.Body.Close()
			io.Copy(&heard[i], resp.Body)
		})
	}
	for i, p := range nodes {
		name := fmt.Sprintf("job-%d", i)
		p.must("POST", "/v1/jobs", shellJob(name, "@manually", "exit 3"), nil)
		p.must("POST", "/v1/jobs/"+name, nil, nil)
		for j := range heard {
			waitFor(t, "word of "+name, heard[j].String, func() bool {
				text := heard[j].String()
				job, started := strings.Index(text, `{"type":"job","job":"`+name), strings.Index(text, `{"type":"started","job":"`+name)
				ended := regexp.MustCompile(`{"type":"ended","job":"` + name + `","execution":"\d+-n[123]","outcome":"failed","attempt":1,"last":true}`).FindString(text)
				return 0 < job && job < started && ended != ""
			})
		}
	}
	for _, p := range slices.Backward(nodes) {
		began := time.Now()
		p.end()
		if took := time.Since(began); took > 10*time.Second || strings.Contains(p.log.String(), "panic") {
			t.Errorf("the end took %s\n%s", took, &p.log)
		}
	}
	streams.Wait()
}

// TestServe_Prefix: below a path everything is as it is at the root, for people
// and programs; and nodes with different paths understand each other.
func TestServe_Prefix(t *testing.T) {
	t.Parallel()
	bind, key := freeAddr(t), sharedKey(t)
	node := func(name string, env []string, args ...string) *process {
		args = append([]string{"agent", key, "--node-name=" + name, "--http-addr=127.0.0.1:0", "--data-dir=data"}, args...)
		return launch(t, program(t, t.TempDir(), env, args...))
	}
	first := node("n1", []string{"BELFRY_HTTP_PREFIX=/belfry"}, "--server", "--bootstrap-expect=1", "--bind-addr="+bind)
	nodes := map[string]*process{
		"/belfry": first,
		"":        node("n2", nil, "--server", "--bind-addr=127.0.0.1:0", "--retry-join="+bind),
		"/other":  node("n3", nil, "--http-prefix=/other", "--bind-addr=127.0.0.1:0", "--retry-join="+bind),
	}
	for prefix, p := range nodes {
		if !strings.HasSuffix(p.url, prefix) {
			t.Fatalf("the URL is %s", p.url)
		}
		p.eventually("a node of the cluster", func() bool { status, _ := p.get("/health", nil); return status == http.StatusOK })
		root := strings.TrimSuffix(p.url, prefix)
		ask := func(method, path, body string) (status int, location string) {
			r, err := http.NewRequest(method, root+path, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.DefaultTransport.RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if location = resp.Header.Get("Location"); location != "" {
				to, err := resp.Request.URL.Parse(location)
				if err != nil {
					t.Fatal(err)
				}
				location = to.Path
			}
			return resp.StatusCode, location
		}
		const doc = `{"name": "a", "schedule": "@manually", "executor": "shell", "executor_config": {"command": "true"}}`
		for _, c := range []struct {
			method, path, body string
			status             int
			location           string
		}{
			{"POST", "/v1/jobs", doc, http.StatusCreated, prefix + "/v1/jobs/a"},
			{"POST", "/v1/jobs/a", "", http.StatusAccepted, prefix + "/v1/jobs/a"},
			{"GET", "/v1/jobs/", "", http.StatusMovedPermanently, prefix + "/v1/jobs"},
			{"GET", "/dashboard", "", http.StatusFound, prefix + "/"},
			{"GET", "/ui/", "", http.StatusFound, prefix + "/"},
			{"GET", "/", "", http.StatusOK, ""},
			{"GET", "/app.js", "", http.StatusOK, ""},
			{"GET", "/health", "", http.StatusOK, ""},
		} {
			status, location := ask(c.method, prefix+c.path, c.body)
			p.eventually("a leader", func() bool { // on a busy machine there may be an election; 503 says that nothing was done
				if status == http.StatusServiceUnavailable {
					status, location = ask(c.method, prefix+c.path, c.body)
				}
				return status != http.StatusServiceUnavailable
			})
			if status != c.status || location != c.location {
				t.Errorf("%s %s%s: %d, leads to %q, want %d, %q", c.method, prefix, c.path, status, location, c.status, c.location)
			}
			if prefix != "" {
				if status, _ := ask(c.method, c.path, c.body); status != http.StatusNotFound {
					t.Errorf("%s %s without the prefix: %d", c.method, c.path, status)
				}
			}
		}
		if status, location := ask("GET", prefix, ""); prefix != "" && (status/100 != 3 || location != prefix+"/") {
			t.Errorf("GET %s: %d, leads to %q", prefix, status, location)
		}
	}
	addr := strings.TrimPrefix(first.url, "http://")
	_, port, _ := strings.Cut(addr, ":")
	for _, flags := range [][]string{{"--http-addr=" + addr}, {"--http-addr=:" + port}, {"--http-addr=" + first.url + "/"}, {"--http-addr=" + strings.TrimSuffix(addr, "/belfry"), "--http-prefix=/belfry"}} {
		out, err := program(t, t.TempDir(), nil, append([]string{"raft", "list-peers"}, flags...)...).CombinedOutput()
		if err != nil || !regexp.MustCompile(`(?m)^n1 .* leader +true +alive$`).Match(out) {
			t.Errorf("raft list-peers %s: %s, %v", flags, out, err)
		}
	}
	for _, p := range []string{strings.TrimSuffix(first.url, "/belfry"), nodes[""].url + "/elsewhere"} {
		for _, command := range [][]string{{"leave"}, {"raft", "list-peers"}, {"raft", "remove-peer", "--peer-id=x"}} {
			out, err := program(t, t.TempDir(), nil, append(command, "--http-addr="+p)...).CombinedOutput()
			if err == nil || !strings.Contains(string(out), "no belfry API below that address; see --http-prefix") {
				t.Errorf("%s at %s: %s, %v", command, p, out, err)
			}
		}
	}
	for _, p := range []string{"/other", ""} {
		if out, err := program(t, t.TempDir(), nil, "leave", "--http-addr="+nodes[p].url).CombinedOutput(); err != nil {
			t.Errorf("leave: %s, %v", out, err)
		}
		nodes[p].ended()
	}
	for _, name := range []string{"n1", "nobody"} { // alive, unknown
		out, err := program(t, t.TempDir(), nil, "raft", "remove-peer", "--peer-id="+name, "--http-addr="+first.url).CombinedOutput()
		if want := map[string]error{"n1": errAliveVoter, "nobody": errNoServer}[name]; err == nil || !strings.Contains(string(out), want.Error()) {
			t.Errorf("remove-peer %s: %s, %v, want %v", name, out, err, want)
		}
	}
}

// ---- Bursts

// TestCluster_Burst: jobs are made by many clients through all servers, and
// call a sink in the same second. It is measured how many were made and run a
// second, by one server and by three. Each run must arrive once.
func TestCluster_Burst(t *testing.T) {
	if *burst == 0 {
		t.Skip("measures: run it with -burst=5000 on a quiet machine")
	}
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprint("Servers=", size), func(t *testing.T) {
			f := newFleet(t, seedOf(t), size, nil, "--log-level=warn")
			f.burst(*burst)
			load, _ := os.ReadFile("/proc/loadavg") // not on every system
			t.Logf("load of the machine: %s", load)
		})
	}
}

// TestNotices_Burst: a webhook that is told of each end does not delay starts.
func TestNotices_Burst(t *testing.T) {
	if *burst == 0 {
		t.Skip("measures: run it with -burst=5000 on a quiet machine")
	}
	in := newInbox(t)
	var delays [2][]time.Duration
	for i, args := range [][]string{{"--log-level=warn"}, {"--log-level=warn", "--notify-on=end", "--notify-webhook=" + in.url}} {
		t.Run(fmt.Sprint("Notices=", i), func(t *testing.T) {
			f := newFleet(t, seedOf(t), 1, nil, args...)
			delays[i] = f.burst(*burst)
			if i == 1 {
				f.await("all notices", fleetPatience, func() bool { return len(in.taken()) == *burst })
			}
		})
	}
	for _, percent := range []int{50, 99} {
		without, with := delays[0][*burst*percent/100], delays[1][*burst*percent/100]
		t.Logf("%d %% of the runs start within %s, and %s with notices: %.2f times", percent, without, with, float64(with)/float64(without))
	}
}

// burst makes n jobs due in one second and measures. It returns how late each arrived, sorted.
func (f *fleet) burst(n int) (delays []time.Duration) {
	f.t.Helper()
	var mu sync.Mutex // guards arrived, last and delays
	arrived := map[string]int{}
	var last, due time.Time
	sink := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		last = time.Now()
		arrived[r.URL.Path]++
		delays = append(delays, last.Sub(due))
	}))
	defer sink.Close()

	due = time.Now().Add(3*time.Second + time.Duration(n)*burstTime).Truncate(time.Second)
	made := f.makeAll(n, func(i int) *job {
		j := &job{Name: fmt.Sprint("burst-", i), Schedule: "@at " + due.Format(time.RFC3339), Executor: executorHTTP, Tags: map[string]string{"server": "true:1"}}
		j.ExecutorConfig = map[string]string{"method": "GET", "url": fmt.Sprint(sink.URL, "/", i)}
		return j
	})
	if left := time.Until(due); left < 500*time.Millisecond {
		f.t.Fatalf("the jobs were made %s before they are due: the machine is too slow", left)
	}
	f.await("all runs", fleetPatience, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(arrived) == n
	})
	ran := float64(n) / last.Sub(due).Seconds()
	f.await("record of all runs", fleetPatience, func() bool {
		_, _, text := f.nodes[0].call("GET", fmt.Sprint("/v1/jobs?_start=0&_end=", n), "", nil)
		return strings.Count(text, `"success_count":1,`) == n
	})
	recorded := time.Since(due)
	mu.Lock()
	defer mu.Unlock()
	for path, times := range arrived {
		if times != 1 {
			f.t.Errorf("run %s arrived %d times", path, times)
		}
	}
	f.t.Logf("servers: %d; %.0f creates a second by %d clients; %.0f runs a second, all on record after %.2f s", len(f.nodes), made, burstClients, ran, recorded.Seconds())
	slices.Sort(delays)
	return delays
}

// makeAll makes n jobs, in turn through all servers, and returns how many it
// made a second.
func (f *fleet) makeAll(n int, newJob func(i int) *job) float64 {
	f.t.Helper()
	began, numbers := time.Now(), make(chan int)
	var clients sync.WaitGroup
	for range burstClients {
		clients.Go(func() {
			for i := range numbers {
				j := newJob(i)
				if status, _, text := f.nodes[i%len(f.nodes)].call("POST", "/v1/jobs", "", j); status != http.StatusCreated {
					f.t.Errorf("making %s: status %d, %s", j.Name, status, text)
				}
			}
		})
	}
	for i := range n {
		numbers <- i
	}
	close(numbers)
	clients.Wait()
	return float64(n) / time.Since(began).Seconds()
}

// TestBoundedListener: at its bound a listener closes what is worth least, and
// never who is answered a write.
func TestBoundedListener(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	const most = 6
	l := newBoundedListener(inner, most)
	entered, leave := make(chan string), make(chan struct{})
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/quick" {
			return
		}
		if r.URL.Path != "/stranger" {
			connAdmitted(r)
		}
		entered <- r.URL.Path
		io.Copy(io.Discard, r.Body)
		<-leave
	})}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- serveUntil(ctx, web, l) }()
	t.Cleanup(func() {
		close(leave)
		stop()
		<-ended
	})
	ranked := func(want [4]int) {
		t.Helper()
		var got [4]int
		eventually(t, fmt.Sprintf("connections in their ranks: %v, want %v", &got, want), func() bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			sum := 0
			for i := range l.ranks {
				got[i] = l.ranks[i].Len()
				sum += got[i]
			}
			return got == want && l.count == sum
		})
	}
	dial := func(text string) net.Conn {
		conn, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		io.WriteString(conn, text)
		return conn
	}
	isClosed := func(c net.Conn) bool {
		c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		_, err := io.Copy(io.Discard, c)
		return !errors.Is(err, os.ErrDeadlineExceeded)
	}
	ask := func(method, path string) net.Conn {
		c := dial(method + " " + path + " HTTP/1.1\r\nHost: a\r\n\r\n")
		if got := <-entered; got != path {
			t.Fatalf("entered %s, want %s", got, path)
		}
		return c
	}
	upload := func(sent string) net.Conn {
		c := dial("POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n" + sent)
		<-entered
		return c
	}
	write := ask("POST", "/write")
	read := ask("GET", "/read")
	part := upload("1")
	idle := dial("GET /quick HTTP/1.1\r\nHost: a\r\n\r\n")
	ranked([4]int{1, 0, 2, 1})
	stranger := ask("GET", "/stranger")
	head := dial("GET / HT")
	ranked([4]int{1, 2, 2, 1})
	for _, want := range []struct {
		name   string
		closed net.Conn
	}{{"idle", idle}, {"stranger", stranger}, {"head", head}, {"read", read}, {"part", part}} {
		upload("12")
		eventually(t, want.name+" is closed", func() bool { return isClosed(want.closed) })
		for _, c := range []net.Conn{write} {
			if isClosed(c) {
				t.Errorf("a connection that is answered a write was closed after that of %s", want.name)
			}
		}
	}
	ranked([4]int{0, 0, 0, most})
	eventually(t, "one that comes when all are writing is closed", func() bool { return isClosed(dial("")) })
	ranked([4]int{0, 0, 0, most})
}

// TestServe_Connections: whoever opens connections and sends nothing, or only
// the beginning of a request, neither takes descriptors from what runs nor keeps
// anybody out.
func TestServe_Connections(t *testing.T) {
	t.Parallel()
	const descriptors = 256
	dir := t.TempDir()
	cmd := program(t, dir, nil)
	args := []string{"agent", "--server", "--bootstrap-expect=1", "--node-name=n1", "--http-addr=127.0.0.1:0", "--bind-addr=127.0.0.1:0", "--data-dir=data", "--acl"}
	cmd.Args = append([]string{"sh", "-c", fmt.Sprintf(`ulimit -n %d; exec "$0" "$@"`, descriptors), cmd.Path}, args...)
	cmd.Path = "/bin/sh"
	p := launch(t, cmd)
	var made tokenView
	p.eventually("first token", func() bool {
		secret, err := os.ReadFile(filepath.Join(dir, "data", bootstrapFile))
		if err != nil {
			return false
		}
		resp, err := http.Post(p.url+"/v1/acl/bootstrap", "", strings.NewReader(`{"Secret": "`+strings.TrimSpace(string(secret))+`"}`))
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return json.NewDecoder(resp.Body).Decode(&made) == nil && made.SecretID != ""
	})
	ask := func(method, path string, doc any) (int, []executionView) {
		text, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		r, err := http.NewRequest(method, p.url+path, bytes.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Dkron-Token", made.SecretID)
		r.Close = true
		resp, err := (&http.Client{Timeout: 5 * time.Second}).Do(r)
		if err != nil {
			t.Errorf("%s %s: %v", method, path, err)
			return 0, nil
		}
		defer resp.Body.Close()
		var list []executionView
		json.NewDecoder(resp.Body).Decode(&list) // of what is no list nothing is asked
		return resp.StatusCode, list
	}
	if status, _ := ask("POST", "/v1/jobs", shellJob("tick", "@every 1s", "echo hello")); status != http.StatusCreated {
		t.Fatalf("a job is answered %d", status)
	}
	refused, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer refused.Close()
	io.WriteString(refused, "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nX-Dkron-Token: wrong\r\nContent-Length: 100\r\n\r\n")
	refused.SetReadDeadline(time.Now().Add(readTimeout / 3))
	if answer, err := bufio.NewReader(refused).ReadString('\n'); !strings.Contains(answer, " 401 ") {
		t.Errorf("who is refused and sends no body is answered %q, %v", answer, err)
	}
	stream, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	const head = "%s HTTP/1.1\r\nHost: localhost\r\nX-Dkron-Token: %s\r\nContent-Length: %d\r\n\r\n"
	fmt.Fprintf(stream, head, "GET /v1/events", made.SecretID, 0)
	streamed := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, stream)
		streamed <- err
	}()
	heldBack := fmt.Sprintf(head, "POST /v1/jobs/none/toggle", made.SecretID, 200_000)
	for _, text := range []string{"", "GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000\r\n\r\n", "POST /v1/acl/bootstrap HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n", "GET / HTTP/1.1\r\n", heldBack} {
		_, before := ask("GET", "/v1/jobs/tick/executions", nil)
		for range 2 * descriptors {
			conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			io.WriteString(conn, text)
		}
		select {
		case err := <-streamed:
			if text != heldBack { // a token's connections are as dear as those of others
				t.Errorf("after %q: who is told what happens is told no more: %v", text, err)
			}
		default:
		}
		if status, _ := ask("GET", "/health", nil); status != http.StatusOK {
			t.Errorf("after %q: /health is answered %d", text, status)
		}
		p.eventually("runs", func() bool {
			_, list := ask("GET", "/v1/jobs/tick/executions", nil)
			return len(list) >= len(before)+4 || t.Failed()
		})
	}
	_, list := ask("GET", "/v1/jobs/tick/executions", nil)
	for _, e := range list {
		if e.Outcome != outcomeSuccess && e.Outcome != "" {
			t.Errorf("a run is %s: %s", e.Outcome, e.Output)
		}
	}
}

// TestServe_Head: a request whose head does not end is refused before it takes
// much memory: many short lines take twenty times that of their bytes.
func TestServe_Head(t *testing.T) {
	t.Parallel()
	p := launch(t, program(t, t.TempDir(), nil, "agent", "--server", "--bootstrap-expect=1", "--http-addr=127.0.0.1:0", "--bind-addr=127.0.0.1:0", "--data-dir=data"))
	conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	text := "GET / HTTP/1.1\r\nHost: localhost\r\n"
	for i := 0; len(text) < headBytesMax+8<<10; i++ {
		text += fmt.Sprintf("%x:\r\n", i)
	}
	io.WriteString(conn, text)
	conn.SetReadDeadline(time.Now().Add(headerTimeout / 2))
	answer := make([]byte, 100)
	n, err := conn.Read(answer)
	if !bytes.Contains(answer[:n], []byte(" 431 ")) {
		t.Errorf("a head without an end is answered %q, %v", answer[:n], err)
	}
}

// A server that is process 1 of a container reaps what its runs leave, and is told of signals.
func TestProgram_AsProcessOne(t *testing.T) {
	unshare, err := exec.LookPath("unshare")
	if err != nil || os.Getuid() != 0 {
		t.Skip("needs root and unshare")
	}
	cmd := program(t, t.TempDir(), nil, "agent", "--server", "--bootstrap-expect=1", "--node-name=n1", "--http-addr=127.0.0.1:0", "--bind-addr=127.0.0.1:0", "--data-dir=data")
	cmd.Path, cmd.Args = unshare, append([]string{unshare, "--pid", "--fork", "--mount-proc"}, append([]string{cmd.Path}, cmd.Args[1:]...)...)
	p := launch(t, cmd)
	p.eventually("a leader", func() bool { status, _ := p.get("/v1/isleader", nil); return status == http.StatusOK })
	const script = `for i in 1 2 3 4 5; do setsid -f sleep 0.3 </dev/null >/dev/null 2>&1; done; cat /proc/1/stat | cut -d\  -f2,4; sleep 1; ps -eo stat,comm | grep -c ^Z; true`
	p.must("POST", "/v1/jobs", map[string]any{"name": "orphans", "schedule": "@manually", "executor": "shell", "executor_config": map[string]string{"shell": "true", "command": script}}, nil)
	p.must("POST", "/v1/jobs/orphans/run", nil, nil)
	var list []executionView
	p.eventually("the run ends", func() bool {
		p.must("GET", "/v1/jobs/orphans/executions", nil, &list)
		return len(list) == 1 && list[0].Outcome != ""
	})
	if e := list[0]; e.ExitCode == nil || *e.ExitCode != 0 || e.Signal != "" || e.CPUSeconds <= 0 {
		t.Errorf("the record of its end is %+v", e)
	}
	if want := ") 0\n0\n"; !strings.HasSuffix(list[0].Output, want) {
		t.Errorf("the run says %q, want an end of %q: process 1 without zombies", list[0].Output, want)
	}
	syscall.Kill(processOne(t, cmd), syscall.SIGTERM)
	<-p.done
	if code := cmd.ProcessState.ExitCode(); code != 0 || !strings.Contains(p.log.String(), "stopping") {
		t.Errorf("exit code %d after SIGTERM\n%s", code, &p.log)
	}
}

// processOne returns the number outside of process 1 below unshare.
func processOne(t *testing.T, unshare *exec.Cmd) int {
	t.Helper()
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", unshare.Process.Pid, unshare.Process.Pid))
	one, _ := strconv.Atoi(strings.TrimSpace(string(children)))
	if err != nil || one == 0 {
		t.Fatalf("process 1 is not found: %q, %v", children, err)
	}
	return one
}

// A server whose host has got another name keeps its own, unless it is told another, which is refused.
func TestProgram_HostNameChanges(t *testing.T) {
	unshare, err := exec.LookPath("unshare")
	if err != nil || os.Getuid() != 0 {
		t.Skip("needs root and unshare")
	}
	dir := t.TempDir()
	on := func(host string) *exec.Cmd {
		cmd := program(t, dir, nil, "agent", "--server", "--bootstrap-expect=1", "--http-addr=127.0.0.1:0", "--bind-addr=127.0.0.1:0", "--data-dir=data")
		cmd.Path, cmd.Args = unshare, append([]string{unshare, "--uts", "sh", "-c", `hostname "$0" && exec "$@"`, host, cmd.Path}, cmd.Args[1:]...)
		return cmd
	}
	for _, host := range []string{"first", "second"} {
		p := launch(t, on(host))
		p.eventually("a leader", func() bool { status, _ := p.get("/v1/isleader", nil); return status == http.StatusOK })
		if _, body := p.get("/v1/members", nil); !strings.Contains(body, `"Name":"first"`) {
			t.Errorf("on %s: got %s", host, body)
		}
		if logged := strings.Contains(p.log.String(), "host=second name=first"); logged != (host == "second") {
			t.Errorf("on %s: logged %v\n%s", host, logged, &p.log)
		}
		p.kill()
	}
}

// TestClient_PlainToTLS: who speaks plain http to a node with TLS is told so.
func TestClient_PlainToTLS(t *testing.T) {
	node := httptest.NewTLSServer(http.NotFoundHandler())
	node.Config.ErrorLog = log.New(io.Discard, "", 0)
	defer node.Close()
	addr := node.Listener.Addr().String()
	var stderr strings.Builder
	status := commandLine(t.Context(), []string{"raft", "list-peers", "--http-addr=" + addr}, nil, io.Discard, &stderr)
	want := "--http-addr " + addr + ": the node speaks TLS; use https:// before the address, or --tls-ca"
	if status != 1 || !strings.Contains(stderr.String(), want) {
		t.Errorf("status %d, said %q, want 1, %q", status, stderr.String(), want)
	}
}

// TestClient_Argument: the name of a policy, and the accessor of a token, may be an argument or a flag, not both.
func TestClient_Argument(t *testing.T) {
	var asked string
	node := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.Method + " " + r.URL.Path
		w.Header().Set("X-Whom", "n1")
		io.WriteString(w, "{}")
	}))
	defer node.Close()
	for _, c := range []struct {
		args   string
		status int
		want   string
	}{
		{"policy delete a", 0, "DELETE /v1/acl/policies/a"},
		{"policy delete --name=a", 0, "DELETE /v1/acl/policies/a"},
		{"policy info a", 0, "GET /v1/acl/policies/a"},
		{"token info 3f", 0, "GET /v1/acl/tokens/3f"},
		{"token delete 3f", 0, "DELETE /v1/acl/tokens/3f"},
		{"policy delete", 2, ""},
		{"policy delete a b", 2, ""},
		{"policy delete --name=a b", 2, ""},
	} {
		asked = ""
		args := append([]string{"acl"}, strings.Fields(c.args)...)
		var stderr strings.Builder
		if status := commandLine(t.Context(), append(args, "--http-addr="+node.URL), nil, io.Discard, &stderr); status != c.status || asked != c.want {
			t.Errorf("acl %s: status %d, requested %q, want %d, %q: %s", c.args, status, asked, c.status, c.want, &stderr)
		}
	}
}

// TestLog: what happened to a cluster stands in the log of each node, once, and nothing worse than INFO does while all is
// well.
func TestLog(t *testing.T) {
	t.Parallel()
	key := sharedKey(t)
	bind := []string{freeAddr(t), freeAddr(t), freeAddr(t)}
	node := func(name string, args ...string) *process {
		args = append([]string{"agent", "--node-name=" + name, "--http-addr=127.0.0.1:0", "--data-dir=data"}, args...)
		return launch(t, program(t, t.TempDir(), nil, args...))
	}
	server := func(i int, dir string) *process { return oneOf(t, i, bind, dir, key) }
	var servers []*process
	dirs := []string{t.TempDir(), t.TempDir(), t.TempDir()}
	for i, dir := range dirs {
		servers = append(servers, server(i, dir))
	}
	agent := node("n4", key, "--bind-addr=127.0.0.1:0", "--retry-join="+bind[0], "--retry-join="+bind[1], "--retry-join="+bind[2], "--log-format=json")
	// said waits until a log has a line with all the words, and checks that it has but one.
	said := func(p *process, words ...string) {
		t.Helper()
		n := func() (n int) {
			for line := range strings.SplitSeq(p.log.String(), "\n") {
				if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) }) {
					n++
				}
			}
			return n
		}
		p.eventually(strings.Join(words, " … "), func() bool { return n() > 0 })
		if got := n(); got != 1 {
			t.Errorf("the log has %d lines with %q, want one\n%s", got, words, &p.log)
		}
	}
	var leader struct{ Name string }
	for _, p := range append(servers, agent) {
		p.eventually("a cluster", func() bool {
			var members []member
			p.get("/v1/members", &members)
			return len(members) == 4
		})
		p.eventually("a leader", func() bool { status, _ := p.get("/v1/leader", &leader); return status == http.StatusOK })
	}
	for i, p := range servers {
		if fmt.Sprint("n", i+1) == leader.Name {
			said(p, "this server is the leader")
		} else {
			said(p, "another server is the leader", "leader="+leader.Name)
		}
		if text := strings.ReplaceAll(p.log.String(), "level=WARN msg=\"this node runs as root", ""); strings.Contains(text, "level=WARN") || strings.Contains(text, "level=ERROR") {
			t.Errorf("a normal start warns:\n%s", text)
		}
	}
	said(agent, `"msg":"another server is the leader","leader":"`+leader.Name)

	servers[0].must("POST", "/v1/jobs", shellJob("bad", "@manually", "exit 3"), nil)
	servers[0].must("POST", "/v1/jobs/bad", nil, nil)
	servers[0].must("POST", "/v1/jobs", shellJob("long", "@manually", "sleep 300"), nil)
	servers[0].must("POST", "/v1/jobs/long", nil, nil)
	for _, p := range servers {
		for n := range 4 {
			said(p, "level=INFO", "a job failed", "job=bad", fmt.Sprint("-n", n+1), "outcome=failed", `reason="exit status 3"`, "attempt=1")
		}
	}
	said(agent, `"msg":"a job failed","job":"bad"`, `-n4","outcome":"failed","reason":"exit status 3","attempt":1`)
	servers[0].eventually("what runs", func() bool { var list []executionView; servers[0].get("/v1/busy", &list); return len(list) == 4 })

	killed := slices.IndexFunc(servers, func(p *process) bool { status, _ := p.get("/v1/isleader", nil); return status != http.StatusOK })
	name := fmt.Sprint("n", killed+1)
	servers[killed].kill()
	others := append(slices.Clone(servers[:killed]), servers[killed+1:]...)
	for _, p := range others {
		said(p, "level=WARN", "a node has failed", "node="+name, "since=", "running=1", "executions=[long/")
	}
	said(agent, "a node has failed", `"node":"`+name)
	if strings.Contains(agent.log.String(), `"running":`) {
		t.Errorf("an agent says what runs on another node:\n%s", &agent.log)
	}
	servers[killed] = server(killed, dirs[killed])
	for _, p := range others {
		said(p, "level=INFO", "a node is back", "node="+name, "silent=")
	}

	servers[1].kill()
	servers[2].kill()
	said(servers[0], "level=WARN", "there is no majority", `missing="[n2 n3]"`, "voters=3", "needed=2")
	servers[1] = server(1, dirs[1])
	said(servers[0], "there is a majority of the servers again")

	// Another key, none, and nobody.
	stranger := node("n5", "--server", sharedKey(t), "--bind-addr=127.0.0.1:0", "--retry-join="+bind[0])
	said(stranger, "level=WARN", bind[0]+" has another cluster key")
	said(servers[0], "level=WARN", "a node with another cluster key calls this one")
	plain := node("n6", "--server", key, "--bind-addr=127.0.0.1:0", "--retry-join="+strings.TrimPrefix(servers[0].url, "http://"))
	said(plain, "level=WARN", strings.TrimPrefix(servers[0].url, "http://")+" has no cluster key")
	conn, err := net.Dial("tcp", bind[0])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n")
	said(servers[0], "level=WARN", "something without a cluster key calls this node")
	nobody := freeAddr(t)
	said(node("n7", "--server", key, "--bind-addr=127.0.0.1:0", "--retry-join="+nobody), "level=WARN", "no node answers at "+nobody)

	for _, p := range append(servers, stranger, plain, agent) {
		for line := range strings.Lines(p.log.String()) {
			if !strings.HasPrefix(line, "time=") && !strings.HasPrefix(line, `{"time":`) {
				t.Errorf("a line without format: %s", line)
			}
		}
	}
}

// oneOf starts server i of a cluster of those with the addresses.
func oneOf(t *testing.T, i int, bind []string, dir string, more ...string) *process {
	t.Helper()
	args := append([]string{"agent", "--node-name=" + fmt.Sprint("n", i+1), "--http-addr=127.0.0.1:0", "--data-dir=data", "--server",
		fmt.Sprint("--bootstrap-expect=", len(bind)), "--bind-addr=" + bind[i]}, more...)
	for _, addr := range bind {
		args = append(args, "--retry-join="+addr)
	}
	return launch(t, program(t, dir, nil, args...))
}

// tool returns the path of a program that a test needs, or skips the test.
func tool(t *testing.T, name, of string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("needs %s; install Debian's package %s", name, of)
	}
	return path
}

// TestMetrics: three servers export the same of jobs, in a form that promtool has nothing against, and all that the
// alerts look at.
func TestMetrics(t *testing.T) {
	t.Parallel()
	key, bind := sharedKey(t), []string{freeAddr(t), freeAddr(t), freeAddr(t)}
	var servers []*process
	for i := range bind {
		servers = append(servers, oneOf(t, i, bind, t.TempDir(), key))
	}
	for _, p := range servers {
		p.eventually("a leader", func() bool { status, _ := p.get("/v1/leader", nil); return status == http.StatusOK })
	}
	for name, command := range map[string]string{"good": "true", "bad": "exit 3", "long": "sleep 300"} {
		j := shellJob(name, "@manually", command)
		j.MaxRuntime, j.MaxSilence = "1h", "26h"
		servers[0].must("POST", "/v1/jobs", j, nil)
		servers[0].must("POST", "/v1/jobs/"+name, nil, nil)
	}
	read := func(p *process) string { _, text := p.get("/metrics", nil); return text }
	ofJobs := func(text string) string {
		return strings.Join(regexp.MustCompile(`(?m)^(belfry_job_|belfry_runs_|belfry_ticks_|dkron_).*`).FindAllString(text, -1), "\n")
	}
	for _, p := range servers {
		p.eventually("what ran", func() bool {
			text := read(p)
			return strings.Contains(text, `belfry_job_runs_total{job_name="good",outcome="success"} 3`) && strings.Contains(text, `belfry_job_failing{job_name="bad"} 1`) &&
				strings.Contains(text, `belfry_job_oldest_running_timestamp_seconds{job_name="long"}`) && strings.Contains(text, "belfry_voters_answering 3\n")
		})
		for _, line := range []string{"belfry_voters 3", "belfry_voters_needed 2", `belfry_members{status="alive"} 3`, "belfry_leader_known 1", "belfry_notices_waiting 0", `belfry_runs_total{outcome="failed"} 3`} {
			if !strings.Contains(read(p), "\n"+line+"\n") {
				t.Errorf("no line %q in\n%s", line, read(p))
			}
		}
	}
	for _, p := range servers[1:] {
		if diff := cmp.Diff(ofJobs(read(servers[0])), ofJobs(read(p))); diff != "" {
			t.Errorf("two servers export different numbers of jobs:\n%s", diff)
		}
	}
	alerts, err := os.ReadFile("testdata/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`\bbelfry_\w+`).FindAllString(string(alerts), -1)
	if len(names) < 10 {
		t.Errorf("the alerts look at %q, want more", names)
	}
	for _, name := range names {
		if !strings.Contains(read(servers[0]), "# TYPE "+name+" ") {
			t.Errorf("an alert looks at %s, which is not exported", name)
		}
	}
	promtool := tool(t, "promtool", "prometheus")
	for _, p := range servers {
		check := exec.Command(promtool, "check", "metrics")
		check.Stdin = strings.NewReader(read(p))
		if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("promtool check metrics: %v\n%s", err, out)
		}
	}
	for _, args := range [][]string{{"check", "rules", "alerts.yml"}, {"test", "rules", "alerts_test.yml"}} {
		check := exec.Command(promtool, args...)
		check.Dir = "testdata"
		if out, err := check.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", args, err, out)
		}
	}
}

// TestProxy: what "belfry help operations" says of nginx works as it is printed: a browser on plain http, which sends no
// Sec-Fetch-Site, changes jobs, others' pages do not, and an output that is followed arrives while it is printed.
func TestProxy(t *testing.T) {
	t.Parallel()
	nginx := tool(t, "nginx", "nginx-light")
	doc, err := web.ReadFile("web/operations.txt")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?s)    location /.*?\n    \}\n`).FindString(string(doc))
	if m == "" {
		t.Fatal("the text has no location for nginx")
	}
	for _, prefix := range []string{"", "/belfry"} {
		t.Run("prefix "+prefix, func(t *testing.T) {
			t.Parallel()
			args := []string{"--allowed-host=ops.example.com"}
			if prefix != "" {
				args = append(args, "--http-prefix="+prefix)
			}
			p := startServer(t, t.TempDir(), args...)
			own := strings.TrimSuffix(strings.TrimPrefix(p.url, "http://"), prefix)
			dir, front := t.TempDir(), freeAddr(t)
			_, port, _ := net.SplitHostPort(front)
			location := strings.NewReplacer("location / ", "location "+prefix+"/ ", "127.0.0.1:8080", own).Replace(m)
			conf := "daemon off; pid pid; error_log stderr; events {}\nhttp { access_log off; client_body_temp_path body; proxy_temp_path proxy;\n" +
				"fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;\nserver { listen " + front + "; server_name ops.example.com;\n" + location + "}\n}\n"
			if os.Geteuid() == 0 {
				conf = "user root;" + conf
			}
			if err := os.WriteFile(filepath.Join(dir, "nginx.conf"), []byte(conf), 0o600); err != nil {
				t.Fatal(err)
			}
			n := &process{t: t, cmd: exec.Command(nginx, "-p", dir, "-e", "stderr", "-c", filepath.Join(dir, "nginx.conf")), done: make(chan struct{})}
			n.cmd.Stdout, n.cmd.Stderr = &n.log, &n.log
			n.start()
			t.Cleanup(func() { n.cmd.Process.Signal(syscall.SIGTERM); n.ended() }) // its workers with it
			ask := func(method, path, origin, body string) (*http.Response, error) {
				r, _ := http.NewRequestWithContext(t.Context(), method, "http://"+front+prefix+path, strings.NewReader(body))
				r.Host = "ops.example.com:" + port
				if origin != "" {
					r.Header.Set("Origin", origin)
				}
				return http.DefaultClient.Do(r)
			}
			n.eventually("answer", func() bool { resp, err := ask("GET", "/health", "", ""); return err == nil && resp.StatusCode == 200 })
			job := `{"name":"a","schedule":"@manually","executor":"shell","executor_config":{"shell":"true","command":"echo one; sleep 300"}}`
			for origin, want := range map[string]int{"http://ops.example.com:" + port: 201, "http://evil.example.com": 403} {
				if resp, err := ask("POST", "/v1/jobs", origin, job); err != nil || resp.StatusCode != want {
					t.Errorf("a change from a page of %s: %v, %v, want %d", origin, resp, err, want)
				}
			}
			p.must("POST", "/v1/jobs/a", nil, nil)
			var list []executionView
			p.eventually("a run", func() bool { p.get("/v1/busy", &list); return len(list) == 1 })
			for path, word := range map[string]string{"/v1/jobs/a/executions/" + list[0].ID + "/output?follow": "one", "/v1/events": "hello"} {
				resp, err := ask("GET", path, "", "")
				if err != nil {
					t.Fatal(err)
				}
				got := make(chan string)
				go func() { line, _ := bufio.NewReader(resp.Body).ReadString('\n'); got <- line }()
				select {
				case line := <-got:
					if !strings.Contains(line, word) {
						t.Errorf("%s: the first line is %q", path, line)
					}
				case <-time.After(20 * time.Second):
					t.Errorf("%s: no line while it goes on", path)
				}
				resp.Body.Close()
			}
		})
	}
}

// TestStatsd: each metric arrives, as the two kinds of server read it, in packets that fit into a frame.
func TestStatsd(t *testing.T) {
	t.Parallel()
	listen, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listen.Close()
	text := "# HELP a_total Help.\n# TYPE a_total counter\na_total 3\n"
	want := []string{"a_total:3|g"}
	for i := range 100 {
		text += fmt.Sprintf("b{job_name=\"j%d\",outcome=\"ran\"} %d\n", i, i)
		want = append(want, fmt.Sprintf("b.j%d.ran:%d|g", i, i))
	}
	received := func() (lines []string) {
		packet := make([]byte, 64<<10)
		for len(lines) < len(want) {
			listen.SetReadDeadline(time.Now().Add(20 * time.Second))
			n, _, err := listen.ReadFrom(packet)
			if err != nil || n > statsdBytes {
				t.Fatalf("%d bytes, %v, after %q", n, err, lines)
			}
			lines = append(lines, strings.Split(strings.TrimSuffix(string(packet[:n]), "\n"), "\n")...)
		}
		return lines
	}
	c := statsd{Addr: listen.LocalAddr().String()}
	c.report(text)
	if diff := cmp.Diff(want, received()); diff != "" {
		t.Errorf("statsd (-want +got):\n%s", diff)
	}
	want[0] = "a_total:3|g|#env:test"
	for i := range 100 {
		want[i+1] = fmt.Sprintf("b:%d|g|#env:test,job_name:j%d,outcome:ran", i, i)
	}
	c = statsd{Dog: c.Addr, Tags: []string{"env:test"}}
	c.report(text)
	if diff := cmp.Diff(want, received()); diff != "" {
		t.Errorf("DogStatsD (-want +got):\n%s", diff)
	}
}

// TestWhyNotRun holds the reasons of ticks that did not run against the words by which they are counted.
func TestWhyNotRun(t *testing.T) {
	m := moment{since: 10}
	for reason, want := range map[string]string{
		overlapReason: "overlap", "overlap with 7-n1": "overlap", "a retry of an earlier run is pending": "overlap",
		noNodeReason: "no_node", "waited 5m0s, and " + noNodeReason: "no_node",
		m.outage(0, time.Minute): "outage", m.outage(20, time.Minute): "outage",
		"later ticks were due at the same time, and only the newest 10 run": "outage",
		"waited 5m0s for mutex db, which a had":                             "overlap", "the run that was due at 2026-03-01T12:00:00Z took its place": "overlap",
		"waited 5m0s for " + roomOn("n1") + ", which runs 4 at once": "full", "the retry waited 5m0s for node n3": "no_node",
		"the job is disabled": "other", "calendar overlap": "calendar", "waited 5m0s for mutex held, which held had": "overlap",
		"held by ops since 2026-03-01T12:00:00Z: no node may overlap the calendar": "held",
	} {
		if got := whyNotRun(reason); got != want {
			t.Errorf("%q counts as %s, want %s", reason, got, want)
		}
	}
}

// TestFailureLog: of a burst of failures some are logged, of the others the number.
func TestFailureLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text lockedBuffer
		l := failureLog{log: slog.New(slog.NewTextHandler(&text, nil))}
		for range 2 {
			for i := range 50 {
				l.add("job", fmt.Sprint(i), outcomeFailed, nil, 1)
			}
			time.Sleep(time.Second)
			synctest.Wait()
		}
		if said, more := strings.Count(text.String(), "a job failed"), strings.Count(text.String(), "executions=30"); said != 2*failuresMax || more != 2 {
			t.Errorf("%d lines of failures and %d counts, want %d and 2\n%s", said, more, 2*failuresMax, &text)
		}
	})
}

// TestDiskProblem: a disk is nearly full below a share, and below a size.
func TestDiskProblem(t *testing.T) {
	const gb = 1 << 30
	for _, c := range []struct {
		free, size uint64
		full       bool
	}{{50 * gb, 100 * gb, false}, {5 * gb, 100 * gb, false}, {5*gb - 1, 100 * gb, true}, {200 << 20, gb, false}, {200<<20 - 1, gb, true}, {0, 0, false}} {
		if why := diskFull.problem("data", c.free, c.size); (why != "") != c.full {
			t.Errorf("%d of %d are free: %q", c.free, c.size, why)
		}
	}
	if told, silent := diskShort.problem("data", 10*gb-1, 100*gb), diskShort.problem("data", gb, 10*gb); told == "" || silent != "" {
		t.Errorf("receivers are told %q, and %q", told, silent)
	}
	if free, size := disk(t.TempDir()); free == 0 || size < free {
		t.Errorf("%d of %d bytes are free", free, size)
	}
	if free, size := disk("/does/not/exist"); free != 0 || size != 0 {
		t.Errorf("of no directory %d of %d bytes are free", free, size)
	}
}
