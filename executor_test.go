package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// patience is how long tests wait for something that must happen.
const patience = time.Minute

// eventually waits until cond holds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v in vain: %s", patience, what)
		}
	}
}

// leader stands for the other side: it takes results, unless it is told not to.
type leader struct {
	mu      sync.Mutex
	refuse  bool
	results map[int64]result
	calls   int
	bytes   []int // of each call
}

func (l *leader) report(_ context.Context, results []result) ([]int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refuse {
		return nil, errors.New("no leader")
	}
	l.calls++
	size := 0
	var taken []int64
	for _, r := range results {
		size += len(r.Output)
		l.results[r.Execution] = r
		taken = append(taken, r.Execution)
	}
	l.bytes = append(l.bytes, size)
	return taken, nil
}

func (l *leader) get(id int64) (result, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok := l.results[id]
	return r, ok
}

func (l *leader) setRefuse(refuse bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refuse = refuse
}

func (l *leader) wait(t testing.TB, id int64) result {
	t.Helper()
	eventually(t, fmt.Sprintf("result of %d", id), func() bool { _, ok := l.get(id); return ok })
	r, _ := l.get(id)
	return r
}

// testNode is an executor under test, with its own leader.
type testNode struct {
	*executor
	leader *leader
	dir    string
	number uint64
	next   int64
	end    func() // ends delivery, like the end of the process
}

const testNodeID = "node-id-of-the-test"

func newNode(t testing.TB, dir string) *testNode {
	t.Helper()
	n := &testNode{leader: &leader{results: map[int64]result{}}, dir: dir, next: 1}
	e, err := newExecutor(executorConfig{Node: "n1", NodeID: testNodeID + dir, DataDir: dir, Log: slog.New(slog.DiscardHandler),
		Limits: nodeLimits{AllowSu: []string{"nobody", "nobody:daemon", "no-such-user"}}})
	if err != nil {
		t.Fatal(err)
	}
	n.executor = e
	if err := e.endLeftovers(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.run(ctx, n.leader.report) }()
	n.end = sync.OnceFunc(func() {
		e.stop(0)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(n.end)
	return n
}

// running and undelivered are the two counts of the node's executor.
func (n *testNode) running() int     { running, _ := n.counts(); return running }
func (n *testNode) undelivered() int { _, undelivered := n.counts(); return undelivered }

// order starts o and returns its id.
func (n *testNode) order(t testing.TB, o order) int64 {
	t.Helper()
	o.Job = cmp.Or(o.Job, "job")
	n.leader.mu.Lock() // subtests run side by side
	n.number++
	number := n.number
	o.Execution, n.next = n.next, n.next+1
	n.leader.mu.Unlock()
	if err := n.start(dispatch{Term: 1, Number: number, Incarnation: n.inc, Orders: []order{o}}); err != nil {
		t.Fatal(err)
	}
	return o.Execution
}

func (n *testNode) shell(t testing.TB, config map[string]string) int64 {
	t.Helper()
	return n.order(t, order{Executor: "shell", Config: config})
}

// script starts a shell script.
func (n *testNode) script(t testing.TB, script string) int64 {
	t.Helper()
	return n.shell(t, map[string]string{"shell": "true", "command": script})
}

// full makes all further orders of a lane wait.
func (n *testNode) full(l *lane) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l.runningMax = 0
}

// printed waits until a running execution has printed s.
func (n *testNode) printed(t testing.TB, id int64, s string) string {
	t.Helper()
	var out bytes.Buffer
	eventually(t, "output "+s, func() bool {
		out.Reset()
		if err := n.output(t.Context(), id, false, 0, &out); err != nil {
			t.Fatal(err)
		}
		return strings.Contains(out.String(), s)
	})
	return out.String()
}

func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return syscall.Kill(pid, 0) == nil
	}
	return !bytes.Contains(stat, []byte(") Z "))
}

// TestExecutorChild is not a test: it is what processes of the tests run, the test binary itself.
func TestExecutorChild(t *testing.T) {
	switch mode, arg, _ := strings.Cut(os.Getenv("EXECUTOR_CHILD"), ":"); mode {
	case "":
		t.Skip("only as a child process")
	case "memory": // holds arg MB until it is killed
		mb, _ := strconv.Atoi(arg)
		b := make([]byte, mb<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		time.Sleep(time.Minute)
		runtime.KeepAlive(b)
	case "crash": // a node that dies while it runs a job
		n := newNode(t, arg)
		id := n.script(t, "setsid sleep 1000 & echo $$ $!; sleep 1000")
		fmt.Println(n.printed(t, id, "\n"))
	case "proxy": // a node behind a proxy
		n := newNode(t, arg)
		limits := nodeLimits{DenyPrivate: true}
		n.cfg.Limits = limits
		n.transport, _ = newTransport(nil, limits)
		for _, c := range proxied {
			res := n.leader.wait(t, n.order(t, order{Executor: "http", Config: map[string]string{"method": "GET", "url": "http://" + c.host + "/"}}))
			fmt.Printf("%q\n", res.Output)
		}
	case "daemon": // detaches itself as Go programs do: it starts itself in a session of its own
		child := exec.Command(os.Args[0], "-test.run=^TestExecutorChild$")
		child.Env, child.SysProcAttr = append(os.Environ(), "EXECUTOR_CHILD=memory:1"), &syscall.SysProcAttr{Setsid: true}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		fmt.Println(child.Process.Pid)
	case "stubborn": // becomes root, if it is a set-user-id program, and ignores TERM
		signal.Ignore(syscall.SIGTERM)
		fmt.Println(syscall.Setuid(0), os.Getpid())
		time.Sleep(time.Minute)
	case "nobody": // a node that is nobody's, with a set-user-id program
		n := newNode(t, arg)
		config := childCommand("stubborn")
		config["shell"], config["command"], config["timeout"], config["kill_timeout"] = "true", "'"+filepath.Join(arg, "setuid")+"' -test.run=^TestExecutorChild$ & wait", "1s", "1s"
		timeout := n.shell(t, maps.Clone(config))
		config["timeout"], config["command"] = "1h", strings.TrimSuffix(config["command"], "& wait")
		stopped := n.shell(t, config)
		n.printed(t, stopped, "\n")
		got := n.leader.wait(t, timeout)
		fmt.Printf("%s %q %s\n", got.Outcome, got.Output, time.Duration(got.Finished-got.Started))
		began := time.Now()
		n.stop(time.Second)
		got = n.leader.wait(t, stopped)
		fmt.Printf("%s %q %s\n", got.Outcome, got.Output, time.Since(began))
	}
	os.Exit(0) // at once, as in a crash
}

func childCommand(mode string) map[string]string {
	return map[string]string{"command": "'" + os.Args[0] + "' -test.run=^TestExecutorChild$", "env": "EXECUTOR_CHILD=" + mode}
}

// A term below the highest seen is refused, and so is what is meant for another process, and a dispatch that a question
// or a kill has overtaken. Whatever is of a higher term counts, even if it is refused.
func TestExecutor_OrderRules(t *testing.T) {
	type call struct {
		do   string // start, ask, kill
		term uint64
		num  uint64
		inc  uint64 // added to the incarnation
		want error
	}
	for _, test := range []struct {
		name  string
		calls []call
	}{
		{"OK", []call{{do: "start", term: 1, num: 1}, {do: "start", term: 1, num: 2}}},
		{"OKAnyOrderOfDispatches", []call{{do: "start", term: 1, num: 2}, {do: "start", term: 1, num: 1}}},
		{"ErrStaleTerm", []call{{do: "start", term: 2, num: 1}, {do: "start", term: 1, num: 9, want: errStaleTerm},
			{do: "ask", term: 1, num: 9, want: errStaleTerm}, {do: "kill", term: 1, num: 9, want: errStaleTerm}}},
		{"ErrFarTerm", []call{{do: "start", term: 2, num: 1}, {do: "start", term: termJumpMax + 3, num: 1, want: errMalformed},
			{do: "ask", term: math.MaxUint64, num: 1, want: errMalformed}, {do: "kill", term: 2, num: 2, want: errUnknownExecution}}},
		{"ErrStaleTermAfterQuestion", []call{{do: "ask", term: 2, num: 1}, {do: "start", term: 1, num: 9, want: errStaleTerm}}},
		{"ErrStaleTermAfterRefusal", []call{{do: "start", term: 2, inc: 1, want: errOtherIncarnation}, {do: "start", term: 1, want: errStaleTerm}}},
		{"ErrOtherIncarnation", []call{{do: "start", term: 1, num: 1, inc: 1, want: errOtherIncarnation}}},
		{"ErrStaleNumberAfterQuestion", []call{{do: "ask", term: 1, num: 5}, {do: "start", term: 1, num: 4, want: errStaleNumber}, {do: "start", term: 1, num: 6}}},
		{"ErrStaleNumberAfterKill", []call{{do: "kill", term: 1, num: 5, want: errUnknownExecution}, {do: "start", term: 1, num: 4, want: errStaleNumber}}},
		{"OldQuestionLowersNothing", []call{{do: "ask", term: 1, num: 5}, {do: "ask", term: 1, num: 3}, {do: "start", term: 1, num: 4, want: errStaleNumber}}},
		{"NumbersBeginAgainWithTheTerm", []call{{do: "ask", term: 1, num: 5}, {do: "start", term: 2, num: 1}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNode(t, t.TempDir())
			for i, c := range test.calls {
				var err error
				switch c.do {
				case "start":
					err = n.start(dispatch{Term: c.term, Number: c.num, Incarnation: n.inc + c.inc})
				case "ask":
					_, err = n.ask(question{Term: c.term, Number: c.num})
				case "kill":
					err = n.executor.kill(kill{Term: c.term, Number: c.num, Execution: 99})
				}
				if err != c.want {
					t.Errorf("call %d %+v: got %v", i, c, err)
				}
			}
		})
	}

	t.Run("ErrBusy", func(t *testing.T) {
		n := newNode(t, t.TempDir())
		if err := n.start(dispatch{Term: 1, Incarnation: n.inc, Orders: make([]order, queuedMax+1)}); err != errQueueFull {
			t.Errorf("got %v, want %v", err, errQueueFull)
		}
		if n.running() != 0 {
			t.Error("took orders of a dispatch that it refused")
		}
	})
}

// An execution id starts at most once in the life of a process, whether it runs, is held, or was acknowledged.
func TestExecutor_StartsOnce(t *testing.T) {
	n := newNode(t, t.TempDir())
	file := filepath.Join(n.dir, "ran")
	o := order{Execution: 7, Job: "job", Executor: "shell", Config: map[string]string{"shell": "true", "command": "echo ran >>" + file}}
	d := dispatch{Term: 1, Number: 1, Incarnation: n.inc, Orders: []order{o, o}}
	for range 2 {
		if err := n.start(d); err != nil {
			t.Fatal(err)
		}
	}
	n.leader.wait(t, 7)
	eventually(t, "acknowledged", func() bool { return n.undelivered() == 0 })
	if err := n.start(d); err != nil {
		t.Fatal(err)
	}
	if n.running() != 0 {
		t.Error("an acknowledged execution started again")
	}
	if got, _ := os.ReadFile(file); string(got) != "ran\n" {
		t.Errorf("ran: %q", got)
	}
}

// What is running is running, what has finished is held until it is acknowledged, and the rest is in neither list.
func TestExecutor_Ask(t *testing.T) {
	n := newNode(t, t.TempDir())
	n.leader.setRefuse(true)
	long := n.script(t, "sleep 1000")
	short := n.script(t, "echo done")
	eventually(t, "one is left", func() bool { return n.running() == 1 })
	ask := func(q question) answer {
		t.Helper()
		q.Term, q.Number = 1, n.number
		a, err := n.ask(q)
		if err != nil {
			t.Fatal(err)
		}
		for i := range a.Held {
			a.Held[i].Started, a.Held[i].Finished, a.Held[i].Process = 0, 0, processEnd{}
		}
		return a
	}
	held := []result{{Execution: short, Node: "n1", Incarnation: n.inc, Outcome: outcomeSuccess, Output: []byte("done\n")}}
	for _, test := range []struct {
		name string
		q    question
		want answer
	}{
		{"Running", question{Executions: []int64{long}}, answer{Running: []int64{long}}},
		{"Held", question{Executions: []int64{short}}, answer{Held: held}},
		{"Unknown", question{Executions: []int64{99}}, answer{}},
		{"All", question{All: true}, answer{Running: []int64{long}, Held: held}},
		{"NamedAndAll", question{Executions: []int64{99, short}, All: true}, answer{Running: []int64{long}, Held: held}},
	} {
		test.want.Incarnation = n.inc
		if diff := gocmp.Diff(test.want, ask(test.q)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
	n.acknowledge([]int64{short})
	if diff := gocmp.Diff(answer{Incarnation: n.inc, Running: []int64{long}}, ask(question{All: true})); diff != "" {
		t.Errorf("after acknowledge (-want +got):\n%s", diff)
	}
}

// An answer is bounded, and what does not fit is said to be running, never left out: the leader would start it again.
func TestExecutor_AskBounded(t *testing.T) {
	n := newNode(t, t.TempDir())
	n.leader.setRefuse(true)
	var ids []int64
	for range 5 {
		ids = append(ids, n.script(t, "head -c 250000 /dev/zero"))
	}
	eventually(t, "all are held", func() bool { return n.undelivered() == len(ids) })
	a, err := n.ask(question{Term: 1, Number: n.number, Executions: ids})
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Held) != 2 || len(a.Running) != 3 {
		t.Errorf("held %d, running %d; want 2 with 500,000 bytes, and 3", len(a.Held), len(a.Running))
	}
}

// Exit, signal, split words, environment and refusals as upstream has them; a failure's reason comes first.
func TestExecutor_Shell(t *testing.T) {
	n := newNode(t, t.TempDir())
	for _, test := range []struct {
		name    string
		config  string // JSON
		outcome string
		want    string // with a leading ~ it is contained
	}{
		{"OK", `{"shell":"true","command":"echo fine; exit 0"}`, outcomeSuccess, "fine\n"},
		{"ExitStatus", `{"shell":"true","command":"echo before; exit 3"}`, outcomeFailed, "exit status 3\nbefore\n"},
		{"StandardError", `{"shell":"true","command":"echo oops >&2; exit 1"}`, outcomeFailed, "exit status 1\noops\n"},
		{"Silent", `{"command":"false"}`, outcomeFailed, "exit status 1\n"},
		{"Signal", `{"shell":"true","command":"kill -9 $$"}`, outcomeFailed, "signal: killed\n"},
		{"NotFoundInShell", `{"shell":"true","command":"exec no-such-program 2>/dev/null"}`, outcomeFailed, "exit status 127\n"},
		{"Shell", `{"shell":"true","command":"A=5; echo $A; echo \"two  words\" | tr a-z A-Z; echo $((6*7))"}`, outcomeSuccess, "5\nTWO  WORDS\n42\n"},
		{"Words", `{"command":"printf %s-%s. one \"two  three\" 'four $HOME'"}`, outcomeSuccess, "one-two  three.four $HOME-."},
		{"NoExpansion", `{"command":"echo $HOME *"}`, outcomeSuccess, "$HOME *\n"},
		{"ShellFalse", `{"command":"echo $HOME","shell":"false"}`, outcomeSuccess, "$HOME\n"},
		{"Escape", `{"command":"printf %s a\\ b"}`, outcomeSuccess, "a b"},
		{"Env", `{"shell":"true","command":"echo \"$A|$B|$C\"","env":"A=1,B=two words,C=x=y"}`, outcomeSuccess, "1|two words|x=y\n"},
		{"EnvComma", `{"shell":"true","command":"echo \"$A|$B\"","env":"A=-Xmx1g\\,-Dx=y,B=\\,,"}`, outcomeSuccess, "-Xmx1g,-Dx=y|,\n"},
		{"JobName", `{"shell":"true","command":"echo $ENV_JOB_NAME"}`, outcomeSuccess, "job\n"},
		{"Cwd", `{"shell":"true","command":"pwd","cwd":"/usr"}`, outcomeSuccess, "/usr\n"},
		{"Payload", `{"command":"cat","payload":"eyJhIjoxfQo="}`, outcomeSuccess, "{\"a\":1}\n"},
		{"NoPayload", `{"command":"cat"}`, outcomeSuccess, ""},
		{"Path", `{"shell":"true","command":"test -n \"$PATH\" && echo inherited"}`, outcomeSuccess, "inherited\n"},
		{"InTime", `{"shell":"true","command":"echo quick","timeout":"10s"}`, outcomeSuccess, "quick\n"},
		{"ClosedOutput", `{"shell":"true","command":"echo open; exec >/dev/null 2>&1; sleep 0.1; exit 3"}`, outcomeFailed, "exit status 3\nopen\n"},
		{"ErrNoCommand", `{}`, outcomeFailed, "~command"},
		{"ErrNoConfig", `null`, outcomeFailed, "~command"},
		{"ErrNoProgram", `{"command":"''"}`, outcomeFailed, "~no program"},
		{"ErrNotFound", `{"command":"no-such-program a b"}`, outcomeFailed, "exec: \"no-such-program\": executable file not found in $PATH\n"},
		{"ErrPathNotFound", `{"command":"/no/such/program"}`, outcomeFailed, "fork/exec /no/such/program: no such file or directory\n"},
		{"ErrQuote", `{"command":"echo \"abc"}`, outcomeFailed, "~quote is not closed"},
		{"ErrCwd", `{"command":"true","cwd":"/no/such/dir"}`, outcomeFailed, "~/no/such/dir/: no such file"},
		{"ErrCwdFile", `{"command":"true","cwd":"/etc/passwd"}`, outcomeFailed, "~executor_config.cwd: stat /etc/passwd/: not a directory"},
		{"ErrEnvNUL", `{"command":"env","env":"A=b\u0000c"}`, outcomeFailed, "~NUL"},
		{"ErrPayload", `{"command":"cat","payload":"%%%"}`, outcomeFailed, "~executor_config.payload: illegal base64"},
		{"ErrUser", `{"command":"true","su":"no-such-user"}`, outcomeFailed, "~executor_config.su"},
		{"ErrTimeout", `{"command":"true","timeout":"10"}`, outcomeFailed, "~executor_config.timeout"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var config map[string]string
			if err := json.Unmarshal([]byte(test.config), &config); err != nil {
				t.Fatal(err)
			}
			got := n.leader.wait(t, n.shell(t, config))
			contained, loose := strings.CutPrefix(test.want, "~")
			if got.Outcome != test.outcome || !loose && string(got.Output) != test.want || !strings.Contains(string(got.Output), contained) {
				t.Errorf("%s: got %s %q, want %s %q", test.config, got.Outcome, got.Output, test.outcome, test.want)
			}
			if got.Started == 0 || got.Finished < got.Started {
				t.Errorf("times %d to %d", got.Started, got.Finished)
			}
		})
	}

	t.Run("LargePayload", func(t *testing.T) {
		payload := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("x"), 200_000))
		got := n.leader.wait(t, n.shell(t, map[string]string{"command": "wc -c", "payload": payload}))
		if strings.TrimSpace(string(got.Output)) != "200000" {
			t.Errorf("got %q", got.Output)
		}
	})
	t.Run("UnreadPayload", func(t *testing.T) {
		payload := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("x"), 200_000))
		if got := n.leader.wait(t, n.shell(t, map[string]string{"command": "true", "payload": payload})); got.Outcome != outcomeSuccess {
			t.Errorf("got %s %q", got.Outcome, got.Output)
		}
	})
	t.Run("User", func(t *testing.T) {
		if os.Getuid() != 0 {
			t.Skip("needs root")
		}
		for su, want := range map[string]string{"nobody": "nobody", "nobody:daemon": "nobody daemon"} {
			got := n.leader.wait(t, n.shell(t, map[string]string{"shell": "true", "command": "id -un; id -gn", "su": su, "cwd": "/"}))
			if got := strings.Join(strings.Fields(string(got.Output)), " "); !strings.HasPrefix(got, want) {
				t.Errorf("su %s: got %q", su, got)
			}
		}
	})
}

// A run under su has the user's surroundings and groups, and PATH in env finds the command.
func TestExecutor_Account(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "my-command"), []byte("#!/bin/sh\necho mine\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	n := newNode(t, t.TempDir())
	config := map[string]string{"command": "my-command", "env": "A=1,PATH=/usr/bin:/bin:" + dir}
	if got := n.leader.wait(t, n.shell(t, config)); string(got.Output) != "mine\n" {
		t.Errorf("PATH in env: got %s %q", got.Outcome, got.Output)
	}
	config = map[string]string{"command": "sh -c true", "env": "PATH=/no/such/dir"}
	if got := n.leader.wait(t, n.shell(t, config)); got.Outcome != outcomeFailed {
		t.Errorf("a PATH without the command: got %s %q", got.Outcome, got.Output)
	}
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	groups, err := exec.Command("id", "-G", "nobody").Output()
	if err != nil {
		t.Fatal(err)
	}
	entry, err := exec.Command("getent", "passwd", "nobody").Output()
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Split(strings.TrimSpace(string(entry)), ":")
	for su, gid := range map[string]string{"nobody": f[3], "nobody:daemon": "1"} {
		got := n.leader.wait(t, n.shell(t, map[string]string{"shell": "true", "su": su, "cwd": "/", "env": "USER=given",
			"command": `echo "$HOME $LOGNAME $SHELL $USER"; id -u; id -g; id -G`}))
		lines := strings.Split(strings.TrimSpace(string(got.Output)), "\n")
		want := []string{f[5] + " nobody " + f[6] + " given", f[2], gid}
		all := strings.Fields(string(groups) + " " + gid)
		if len(lines) != 4 || !slices.Equal(lines[:3], want) || slices.ContainsFunc(all, func(g string) bool { return !slices.Contains(strings.Fields(lines[3]), g) }) {
			t.Errorf("su %s: got %q, want %q and the groups %q", su, lines, want, all)
		}
	}
}

// An executor that belfry does not have fails the run with a sentence that says so.
func TestExecutor_UnknownExecutor(t *testing.T) {
	n := newNode(t, t.TempDir())
	for name, want := range map[string]string{"": "no executor", "nosuch": `no executor "nosuch"`, "kafka": "not part of belfry"} {
		got := n.leader.wait(t, n.order(t, order{Executor: name}))
		if got.Outcome != outcomeFailed || !strings.Contains(string(got.Output), want) {
			t.Errorf("executor %q: got %s %q", name, got.Outcome, got.Output)
		}
	}
	got := n.leader.wait(t, n.order(t, order{Executor: strings.Repeat("x", 2*reasonBytesMax)}))
	if len(got.Output) != reasonBytesMax+1 || got.Output[reasonBytesMax] != '\n' {
		t.Errorf("a long reason: %d bytes", len(got.Output))
	}
}

// A process gets the node's environment without the node's settings, and what identifies its run.
func TestExecutor_Environment(t *testing.T) {
	for name, value := range map[string]string{"BELFRY_ENCRYPT": "secret", "DKRON_ENCRYPT": "secret", "ENV_JOB_NAME": "other", "KEPT": "yes", "REPLACED": "old"} {
		t.Setenv(name, value)
	}
	n := newNode(t, t.TempDir())
	at := time.Date(2026, 2, 3, 4, 5, 6, 789, time.UTC)
	id := n.order(t, order{Job: "j", Group: 4, Attempt: 2, ScheduledAt: at.UnixNano(), Executor: "shell",
		Params: map[string]string{"start_date": "2026-11-01", "Zone": "a=b c"}, Config: map[string]string{
			"command": "env", "env": "REPLACED=new,BELFRY_PARAM_ZONE=mine,BELFRY_NODE=mine,BELFRY_NODE_ID=fake,BELFRY_HTTP_ADDR=:1,TWICE=1,TWICE=2"}})
	got := strings.Split(strings.TrimSpace(string(n.leader.wait(t, id).Output)), "\n")
	got = slices.DeleteFunc(got, func(s string) bool {
		name, _, _ := strings.Cut(s, "=")
		return !strings.HasPrefix(name, "BELFRY_") && !strings.HasPrefix(name, "DKRON_") &&
			!slices.Contains([]string{"ENV_JOB_NAME", "KEPT", "REPLACED", "TWICE"}, name)
	})
	slices.Sort(got)
	want := []string{"BELFRY_ATTEMPT=2", "BELFRY_EXECUTION=1-n1", "BELFRY_HTTP_ADDR=:1", "BELFRY_JOB=j", "BELFRY_NODE=mine",
		"BELFRY_NODE_ID=" + n.cfg.NodeID, "BELFRY_PARAM_START_DATE=2026-11-01", "BELFRY_PARAM_ZONE=a=b c", "BELFRY_SCHEDULED_AT=2026-02-03T04:05:06.000000789Z", "ENV_JOB_NAME=j", "KEPT=yes", "REPLACED=new", "TWICE=2"}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// What jobs get of the node's environment is what --job-env says.
func TestExecutor_JobEnv(t *testing.T) {
	environ := []string{"PATH=/bin", "HOME=/root", "LANG=C", "SECRET=x", "PATHX=y", "BELFRY_TOKEN=z"}
	for _, test := range []struct{ env, want []string }{
		{nil, environ[:5]}, {[]string{"inherit"}, environ[:5]}, {[]string{"clean"}, environ[:3]}, {[]string{"PATH", "SECRET", "NONE"}, []string{"PATH=/bin", "SECRET=x"}},
	} {
		if got := inheritedEnvironment(nodeLimits{JobEnv: test.env}.passed(slices.Clone(environ))); !slices.Equal(got, test.want) {
			t.Errorf("--job-env %v passes %q, want %q", test.env, got, test.want)
		}
	}
}

// Of a long output the last 256,000 bytes are kept, and the rest is counted; a reason in front takes its part of them.
func TestExecutor_OutputLimit(t *testing.T) {
	n := newNode(t, t.TempDir())
	const script = "head -c 300000 /dev/zero | tr '\\0' a; echo; echo the end"
	got := n.leader.wait(t, n.script(t, script))
	if want := strings.Repeat("a", outputBytesMax-9) + "\nthe end\n"; string(got.Output) != want || got.Dropped != 300_009-outputBytesMax {
		t.Errorf("kept %d bytes ending %q, dropped %d", len(got.Output), got.Output[len(got.Output)-20:], got.Dropped)
	}
	got = n.leader.wait(t, n.script(t, script+"; exit 1"))
	if len(got.Output) != outputBytesMax || !bytes.HasPrefix(got.Output, []byte("exit status 1\naaa")) || !bytes.HasSuffix(got.Output, []byte("the end\n")) {
		t.Errorf("kept %d bytes from %q", len(got.Output), got.Output[:20])
	}
	if got.Dropped != 300_009-outputBytesMax+int64(len("exit status 1\n")) {
		t.Errorf("dropped %d", got.Dropped)
	}
}

// Past its timeout a process group gets TERM, and KILL if that does not help.
func TestExecutor_Timeout(t *testing.T) {
	t.Parallel()
	n := newNode(t, t.TempDir())
	term := n.shell(t, map[string]string{"shell": "true", "command": "echo started; sleep 1000", "timeout": "200ms"})
	trap := n.shell(t, map[string]string{"shell": "true", "command": "trap 'echo trapped' TERM; echo started; while :; do sleep 0.1; done", "timeout": "200ms"})
	got := n.leader.wait(t, term)
	if want := "execution time exceeded the timeout of 200ms\nstarted\n"; got.Outcome != outcomeFailed || string(got.Output) != want {
		t.Errorf("got %s %q, want %q", got.Outcome, got.Output, want)
	}
	if took := time.Duration(got.Finished - got.Started); took > killGrace {
		t.Errorf("took %v: TERM should have ended it", took)
	}
	got = n.leader.wait(t, trap)
	if got.Outcome != outcomeFailed || !bytes.HasSuffix(got.Output, []byte("trapped\n")) {
		t.Errorf("got %s %q", got.Outcome, got.Output)
	}
	if took := time.Duration(got.Finished - got.Started); took < killGrace {
		t.Errorf("took %v: KILL came too early", took)
	}
}

// The job's own timeout holds for every executor, beside that of the executor, which may be shorter.
func TestExecutor_TimeoutOfJob(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer srv.Close()
	n := newNode(t, t.TempDir())
	for _, c := range []struct {
		executor string
		config   map[string]string
		timeout  string
		want     string
	}{
		{executorShell, map[string]string{"command": "sleep 1000"}, "150ms", "execution time exceeded the job's timeout of 150ms\n"},
		{executorShell, map[string]string{"command": "sleep 1000", "timeout": "150ms"}, "1h", "execution time exceeded the timeout of 150ms\n"},
		{executorHTTP, map[string]string{"url": srv.URL, "method": "GET"}, "150ms", "execution time exceeded the job's timeout of 150ms\n"},
		{executorHTTP, map[string]string{"url": srv.URL, "method": "GET", "timeout": "1"}, "1h", "no complete response within the timeout of 1s\n"},
	} {
		id := n.order(t, order{Executor: c.executor, Config: c.config, Timeout: c.timeout})
		if got := n.leader.wait(t, id); got.Outcome != outcomeFailed || string(got.Output) != c.want {
			t.Errorf("%s %v with timeout %s: %s %q, want failed %q", c.executor, c.config, c.timeout, got.Outcome, got.Output, c.want)
		}
	}
}

// A kill reaches grandchildren, a run that waits, and a request; a run that has ended is beyond it.
func TestExecutor_Kill(t *testing.T) {
	n := newNode(t, t.TempDir())
	doKill := func(id int64) error {
		n.number++
		return n.executor.kill(kill{Term: 1, Number: n.number, Execution: id, Why: "killed by alice"})
	}
	t.Run("Grandchildren", func(t *testing.T) {
		id := n.script(t, "sh -c 'sleep 1000 & echo $!; wait' & wait")
		pid, err := strconv.Atoi(strings.TrimSpace(n.printed(t, id, "\n")))
		if err != nil {
			t.Fatal(err)
		}
		if err := doKill(id); err != nil {
			t.Fatal(err)
		}
		got := n.leader.wait(t, id)
		if want := fmt.Sprintf("killed by alice\n%d\n", pid); got.Outcome != outcomeKilled || string(got.Output) != want {
			t.Errorf("got %s %q, want %q", got.Outcome, got.Output, want)
		}
		eventually(t, "grandchild ends", func() bool { return !alive(pid) })
	})
	t.Run("Request", func(t *testing.T) {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "half")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}))
		defer srv.Close()
		id := n.order(t, order{Executor: "http", Config: map[string]string{"method": "GET", "url": srv.URL}})
		n.printed(t, id, "half")
		if err := doKill(id); err != nil {
			t.Fatal(err)
		}
		if got := n.leader.wait(t, id); got.Outcome != outcomeKilled || string(got.Output) != "killed by alice\nhalf" {
			t.Errorf("got %s %q", got.Outcome, got.Output)
		}
	})
	t.Run("Waiting", func(t *testing.T) {
		n.full(&n.processes)
		id := n.script(t, "echo never")
		if err := doKill(id); err != nil {
			t.Fatal(err)
		}
		if got := n.leader.wait(t, id); got.Outcome != outcomeKilled || string(got.Output) != "killed by alice\n" {
			t.Errorf("got %s %q", got.Outcome, got.Output)
		}
		n.mu.Lock()
		n.processes.runningMax = 1
		n.mu.Unlock()
		if got := n.leader.wait(t, n.script(t, "echo next")); string(got.Output) != "next\n" { // which also skips the one killed
			t.Errorf("behind it: got %s %q", got.Outcome, got.Output)
		}
		if n.running() != 0 {
			t.Errorf("%d still run", n.running())
		}
	})
	t.Run("ErrUnknownExecution", func(t *testing.T) {
		if err := doKill(999); err != errUnknownExecution {
			t.Errorf("got %v", err)
		}
	})
}

// Children that a run leaves in its session end with it when its output has stayed open for a while; one that left the
// session and holds the output is left alone.
func TestExecutor_ChildrenEndWithTheRun(t *testing.T) {
	t.Parallel()
	n := newNode(t, t.TempDir())
	inside, outside := n.script(t, "sleep 1000 & echo $!; echo done"), n.script(t, "setsid sleep 1000 & echo $!")
	closed := n.script(t, "sleep 1000 >/dev/null 2>&1 & echo $!")
	for _, id := range []int64{inside, outside, closed} {
		got := n.leader.wait(t, id)
		pid, err := strconv.Atoi(strings.Fields(string(got.Output))[0])
		if err != nil || got.Outcome != outcomeSuccess {
			t.Fatalf("got %s %q", got.Outcome, got.Output)
		}
		if alive(pid) != (id == outside) {
			t.Errorf("%q: the child lives: %v", got.Output, alive(pid))
		}
		if took := time.Duration(got.Finished - got.Started); took > 2*outputWait || id == closed && took > outputWait {
			t.Errorf("%q: took %s", got.Output, took)
		}
		syscall.Kill(pid, syscall.SIGKILL)
	}
}

// What is written after the first process has ended is output as well.
func TestExecutor_OutputToItsEnd(t *testing.T) {
	t.Parallel()
	n := newNode(t, t.TempDir())
	file := filepath.Join(t.TempDir(), "log")
	for name, test := range map[string]struct{ command, want string }{
		"tee":       {`bash -c 'exec > >(tee -a "$1") 2>&1; echo started; echo "final result: OK"' x ` + file, "started\nfinal result: OK\n"},
		"loop":      {`bash -c 'exec > >(while read -r line; do echo "$(date +%Y) $line"; done); echo one; echo last' | sed 's/^[0-9]* //'`, "one\nlast\n"},
		"dash":      {`dash -c '(sleep 0.5; echo late) & echo early'`, "early\nlate\n"},
		"dashQuiet": {`dash -c '(sleep 0.5; echo sent >` + file + `.mail) & echo queued'`, "queued\n"},
		"python":    {`python3 -c 'import os,time; print("parent", flush=True); os.fork() or (time.sleep(0.5), print("child"))'`, "parent\nchild\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for range 10 {
				if got := n.leader.wait(t, n.script(t, test.command)); got.Outcome != outcomeSuccess || string(got.Output) != test.want {
					t.Fatalf("got %s %q, want %q", got.Outcome, got.Output, test.want)
				}
			}
			if name == "dashQuiet" {
				if mail, _ := os.ReadFile(file + ".mail"); string(mail) != "sent\n" {
					t.Errorf("the mail is %q", mail)
				}
			}
		})
	}
}

// of returns the processes of an execution.
func (n *testNode) of(id int64) []proc {
	return slices.DeleteFunc(slices.Clone(n.procs()), func(p proc) bool { return p.execution != strconv.FormatInt(id, 10) })
}

// A timeout and a kill end all that a run began, in whatever group and session it is, and its last process has the grace.
func TestExecutor_EndsAllOfARun(t *testing.T) {
	n := newNode(t, t.TempDir())
	daemon := childCommand("daemon")
	for name, config := range map[string]map[string]string{
		"timeout":     {"command": "timeout 300 sleep 61"},
		"timeoutPipe": {"shell": "true", "command": "timeout 300 sleep 61 | cat"},
		"setsid":      {"command": "setsid -w sleep 61"},
		"setsidQuiet": {"shell": "true", "command": "setsid -f sleep 61 >/dev/null 2>&1; sleep 61"},
		"jobs":        {"command": `bash -c 'set -m; sleep 61 & sleep 61 | cat & wait'`},
		"jobsDash":    {"command": `dash -c 'set -m; sleep 61 & wait'`},
		"python":      {"command": `python3 -c 'import os,time; os.fork() or os.setsid(); time.sleep(61)'`},
		"noEnviron":   {"shell": "true", "command": "env -i setsid sh -c 'sleep 61 & wait' & env -i sleep 61"},
		"go":          {"shell": "true", "command": daemon["command"] + "; sleep 61", "env": daemon["env"]},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, byHand := range []bool{false, true} {
				config := maps.Clone(config)
				if !byHand {
					config["timeout"] = "1s"
				}
				id := n.shell(t, config)
				eventually(t, "all run", func() bool {
					_, ended := n.leader.get(id) // by a timeout shorter than a loaded machine took to start it
					return ended || len(slices.DeleteFunc(n.of(id), func(p proc) bool { return p.command != "sleep" && p.command != "python3" })) > 0
				})
				if byHand {
					n.executor.kill(kill{Term: 1, Execution: id, Why: "killed by alice"})
				}
				got := n.leader.wait(t, id)
				if left := n.of(id); len(left) != 0 || got.Outcome == outcomeSuccess || got.Finished-got.Started > int64(killGrace) {
					t.Errorf("got %s %q after %s, and %s is left", got.Outcome, got.Output, time.Duration(got.Finished-got.Started), names(left))
				}
			}
		})
	}
	t.Run("Grace", func(t *testing.T) {
		t.Parallel()
		const command = `sh -c 'trap "sleep 2; echo clean; exit 0" TERM; sleep 61 & echo ready; wait'; true`
		for grace, want := range map[string]string{"": "ready\nclean\n", "300ms": "ready\n"} {
			id := n.shell(t, map[string]string{"shell": "true", "command": command, "kill_timeout": grace})
			n.printed(t, id, "ready")
			n.executor.kill(kill{Term: 1, Execution: id, Why: "killed by alice"})
			if got := n.leader.wait(t, id); string(got.Output) != "killed by alice\n"+want {
				t.Errorf("kill_timeout %q: got %q", grace, got.Output)
			}
		}
	})
	t.Run("Stop", func(t *testing.T) {
		t.Parallel()
		n := newNode(t, t.TempDir())
		id := n.shell(t, map[string]string{"shell": "true", "command": "trap '' TERM; echo ready; while :; do sleep 1; done", "kill_timeout": "10m"})
		n.printed(t, id, "ready")
		n.executor.kill(kill{Term: 1, Execution: id, Why: "killed by alice"})
		began := time.Now()
		n.stop(0)
		if took := time.Since(began); took < killGrace || took > killGrace+unkillableMax {
			t.Errorf("the node stopped after %s", took)
		}
	})
}

// A process that may not be ended holds up neither its run nor the node; the record names it.
func TestExecutor_NamesWhatItCannotEnd(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	t.Parallel()
	dir, err := os.MkdirTemp("/tmp", "belfry-nobody")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	binary, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]fs.FileMode{"setuid": fs.ModeSetuid | 0o755, "node": 0o755} {
		if err := cmp.Or(os.WriteFile(filepath.Join(dir, name), binary, 0o755), os.Chmod(filepath.Join(dir, name), mode)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	child := exec.Command(filepath.Join(dir, "node"), "-test.run=^TestExecutorChild$")
	child.Dir, child.Env = dir, append(os.Environ(), "EXECUTOR_CHILD=nobody:"+dir)
	child.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := child.CombinedOutput()
	for _, pid := range regexp.MustCompile(`nil> (\d+)`).FindAllStringSubmatch(string(out), -1) {
		n, _ := strconv.Atoi(pid[1])
		syscall.Kill(n, syscall.SIGKILL)
	}
	lines := strings.Split(string(out), "\n")
	const left = `These processes could not be ended: \d+ \(root, setuid\)\.\\n" 1\d\.\d+s$`
	if err != nil || !regexp.MustCompile(`^failed "execution time exceeded the timeout of 1s.*`+left).MatchString(lines[0]) ||
		!regexp.MustCompile(`^interrupted "the node stopped.*`+left).MatchString(lines[1]) {
		t.Errorf("got %v: %s", err, out)
	}
}

// A daemon that detached itself lives on after its run, always, and no start of a node touches it.
func TestExecutor_LeavesDaemons(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := newNode(t, dir)
	const python = `import os,sys
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
print(os.getpid(), flush=True)
os.dup2(os.open("/dev/null", os.O_RDWR), 1); os.dup2(1, 2)
os.execlp("sleep", "sleep", "300")`
	var pids []int
	for name, config := range map[string]map[string]string{
		"setsid": {"shell": "true", "command": "setsid -f sleep 300 </dev/null >/dev/null 2>&1"},
		"bash":   {"command": "bash -c 'setsid sleep 300 </dev/null >/dev/null 2>&1 & disown'"},
		"python": {"command": "python3 -c '" + python + "'"},
		"go":     childCommand("daemon"),
	} {
		for range 20 {
			id := n.shell(t, config)
			if got := n.leader.wait(t, id); got.Outcome != outcomeSuccess || got.Finished-got.Started > int64(outputWait) {
				t.Fatalf("%s: got %s %q after %s", name, got.Outcome, got.Output, time.Duration(got.Finished-got.Started))
			}
			eventually(t, name+" lives after the run", func() bool { // and has its environment: it may be executing its program
				left := n.of(id)
				if len(left) == 1 {
					pids = append(pids, left[0].pid)
				}
				return len(left) == 1
			})
		}
	}
	defer func() {
		for _, pid := range pids {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}()
	n.end()
	newNode(t, dir).end()
	for _, pid := range pids {
		if !alive(pid) {
			t.Errorf("the daemon %d was ended", pid)
		}
	}
}

// A run has no terminal: what asks there fails at once.
func TestExecutor_NoTerminal(t *testing.T) {
	n := newNode(t, t.TempDir())
	if got := n.leader.wait(t, n.script(t, "read x </dev/tty; ps -o sid= -p $$; echo $$")); !strings.Contains(string(got.Output), "/dev/tty") ||
		len(strings.Fields(string(got.Output))) < 2 {
		t.Errorf("got %s %q", got.Outcome, got.Output)
	}
}

// The exit of the first process, and what it and its children used, stand in the result.
func TestExecutor_ProcessEnd(t *testing.T) {
	n := newNode(t, t.TempDir())
	for script, want := range map[string]string{"exit 0": "0 ", "exit 3": "3 ", "kill -TERM $$": "terminated", "kill -SEGV $$": "segmentation fault"} {
		got := n.leader.wait(t, n.script(t, script))
		exit := got.Process.Signal
		if got.Process.ExitCode != nil {
			exit = fmt.Sprint(*got.Process.ExitCode, " ", got.Process.Signal)
		}
		if exit != want {
			t.Errorf("%s: got %q", script, exit)
		}
	}
	var own syscall.Rusage // a process begins with the peak of the one that made it
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &own); err != nil {
		t.Fatal(err)
	}
	size := own.Maxrss<<10 + 300<<20
	command := fmt.Sprintf(`python3 -c 'x = b"x" * %d; sum(range(5000000))'`, size)
	got := n.leader.wait(t, n.shell(t, map[string]string{"command": command}))
	if got.Process.Memory < size || got.Process.Memory > 2*size || got.Process.CPU < int64(50*time.Millisecond) || got.Process.CPU > got.Finished-got.Started+int64(time.Second) {
		t.Errorf("got %s %q: %d bytes, %s of CPU in %s", got.Outcome, got.Output, got.Process.Memory, time.Duration(got.Process.CPU), time.Duration(got.Finished-got.Started))
	}
}

// The resident memory of a whole group counts.
func TestExecutor_MemoryLimit(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc")
	}
	n := newNode(t, t.TempDir())
	config := childCommand("memory:300")
	config["shell"], config["command"] = "true", config["command"]+"; true" // a child of the shell
	config["mem_limit"] = "200MB"
	got := n.leader.wait(t, n.shell(t, config))
	if got.Outcome != outcomeFailed || !strings.Contains(string(got.Output), "exceeded the mem_limit of 209715200 bytes\n") {
		t.Errorf("got %s %q", got.Outcome, got.Output)
	}
	config = map[string]string{"command": "sleep 1.2", "mem_limit": "200MB"}
	if got := n.leader.wait(t, n.shell(t, config)); got.Outcome != outcomeSuccess {
		t.Errorf("below the limit: got %s %q", got.Outcome, got.Output)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for range n.limited.Range {
		t.Error("a process is watched after its end")
	}
}

// What a node leaves running when it dies is ended before the next process of that node answers anything.
func TestExecutor_EndsLeftovers(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc")
	}
	dir := t.TempDir()
	child := exec.Command(os.Args[0], "-test.run=^TestExecutorChild$")
	child.Env = append(os.Environ(), "EXECUTOR_CHILD=crash:"+dir)
	out, err := child.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var pids []int
	for _, s := range strings.Fields(string(out)) {
		pid, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("child says %q", out)
		}
		pids = append(pids, pid)
		if !alive(pid) {
			t.Fatalf("process %d did not survive its node; the test shows nothing", pid)
		}
	}
	other := t.TempDir()
	if out, err := exec.Command("cp", "-a", dir+"/.", other).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// Neither a copy of the directory, nor a start that goes no further than this, ends anything.
	cfg := executorConfig{Node: "n1", NodeID: testNodeID + dir, DataDir: dir, Log: slog.New(slog.DiscardHandler)}
	if _, err := newExecutor(cfg); err != nil {
		t.Fatal(err)
	}
	cfg.DataDir = other
	copied, err := newExecutor(cfg)
	if err == nil {
		err = copied.endLeftovers()
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		if !alive(pid) {
			t.Errorf("process %d was ended by a copy", pid)
		}
	}
	newNode(t, dir)
	for _, pid := range pids {
		if alive(pid) {
			t.Errorf("process %d goes on", pid)
		}
	}
}

// A session whose environment says nothing is known by the pid of its leader, unless that began after the run: a number
// that was given again.
func TestExecutor_LeftoverPid(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc")
	}
	dir := t.TempDir()
	newNode(t, dir).end()
	path := filepath.Join(dir, "running")
	here, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		later int // ticks between the note and the start of the session
		lives bool
	}{{"OfTheRun", -1, false}, {"GivenAgain", 1, true}, {"AtOnce", 0, true}} {
		cmd := exec.Command("sleep", "1000")
		cmd.Env, cmd.SysProcAttr = []string{}, &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		pid := cmd.Process.Pid
		line := fmt.Sprintf("%-*s\n", noteBytes-1, fmt.Sprint("7 ", pid, " ", readProc(pid).start-c.later))
		if err := os.WriteFile(path, append(bytes.Clone(here), line...), 0o600); err != nil {
			t.Fatal(err)
		}
		newNode(t, dir).end()
		if alive(pid) != c.lives {
			t.Errorf("%s: the process lives: %v", c.name, !c.lives)
		}
		cmd.Process.Kill()
		<-done
	}
	var u uptime
	if now, soon := readProc(os.Getpid()).start, u.soon(); soon <= now {
		t.Errorf("a process that began at %d is said to have begun before %d", now, soon)
	}
}

// What nobody takes within a second is on disk, survives the process, and is delivered by the next one.
func TestExecutor_KeepsResults(t *testing.T) {
	dir := t.TempDir()
	n := newNode(t, dir)
	n.leader.setRefuse(true)
	first := n.script(t, "echo first; exit 1")
	eventually(t, "on disk", func() bool { _, err := os.Stat(n.path(first)); return err == nil })
	want, err := n.ask(question{Term: 1, Number: n.number, All: true})
	if err != nil || len(want.Held) != 1 || string(want.Held[0].Output) != "exit status 1\nfirst\n" {
		t.Fatalf("got %+v, %v", want, err)
	}
	second := n.script(t, "echo second")
	eventually(t, "second is held", func() bool { return n.undelivered() == 2 })
	n.end() // younger than a second: kept as well

	for name, content := range map[string]string{"9.json": `{"execution":9,"outco`, "8.json": "", "7.json.tmp": "half",
		"6.json": `{"execution":5,"outcome":"success"}`, "5.json": `{"execution":5,"outcome":"odd"}`} {
		if err := os.WriteFile(filepath.Join(dir, "results", name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n = newNode(t, dir)
	if got := n.leader.wait(t, first); !gocmp.Equal(got, want.Held[0]) {
		t.Errorf("got %+v, want %+v", got, want.Held[0])
	}
	if got := n.leader.wait(t, second); string(got.Output) != "second\n" {
		t.Errorf("got %q", got.Output)
	}
	eventually(t, "acknowledged", func() bool { return n.undelivered() == 0 })
	eventually(t, "only what was set aside is left", func() bool {
		var names []string
		entries, _ := os.ReadDir(filepath.Join(dir, "results"))
		for _, entry := range entries {
			names = append(names, entry.Name())
		}
		return slices.Equal(names, []string{"5.json.bad", "6.json.bad", "8.json.bad", "9.json.bad"})
	})
	info, err := os.Stat(filepath.Join(dir, "results"))
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("results: %v, %v", info.Mode(), err)
	}
}

// A disk that fails loses no result: what cannot be written stays in memory, and of what cannot be read the outcome is left.
func TestExecutor_DiskFails(t *testing.T) {
	n := newNode(t, t.TempDir())
	n.leader.setRefuse(true)
	dir := filepath.Join(n.dir, "results")
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	id := n.script(t, "echo kept")
	eventually(t, "held", func() bool { return n.undelivered() == 1 })
	ask := func() result {
		t.Helper()
		a, err := n.ask(question{Term: 1, Number: n.number, Executions: []int64{id}})
		if err != nil || len(a.Held) != 1 {
			t.Fatalf("got %+v, %v", a, err)
		}
		return a.Held[0]
	}
	if err := n.storeOlderThan(0); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if got := ask(); string(got.Output) != "kept\n" {
		t.Errorf("not written: got %q", got.Output)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := n.storeOlderThan(0); err != nil {
		t.Fatal(err)
	}
	if got := ask(); string(got.Output) != "kept\n" {
		t.Errorf("written: got %q", got.Output)
	}
	if err := os.Truncate(n.path(id), 10); err != nil {
		t.Fatal(err)
	}
	if got := ask(); got.Outcome != outcomeSuccess || !strings.Contains(string(got.Output), "output was lost") {
		t.Errorf("torn: got %s %q", got.Outcome, got.Output)
	}

	long := n.order(t, order{Executor: strings.Repeat("x", 500)}) // its reason is longer than what replaces the output
	eventually(t, "both are held", func() bool { return n.undelivered() == 2 })
	if err := cmp.Or(n.storeOlderThan(0), os.Remove(n.path(long))); err != nil {
		t.Fatal(err)
	}
	if a, err := n.ask(question{Term: 1, Number: n.number, All: true}); err != nil || checkResults(a.Held) != nil {
		t.Errorf("gone: got %+v, %v, which the leader refuses", a, err)
	}
	var out bytes.Buffer
	if err := n.output(t.Context(), long, true, 0, &out); err != nil || !strings.Contains(out.String(), "output was lost") {
		t.Errorf("gone: got %q, %v", out.String(), err)
	}
}

// Results are delivered in few calls, each of a bounded size, and again if nobody takes them.
func TestExecutor_Deliver(t *testing.T) {
	n := newNode(t, t.TempDir())
	n.leader.setRefuse(true)
	var ids []int64
	for range 10 {
		ids = append(ids, n.script(t, "head -c 200000 /dev/zero"))
	}
	for range 1_500 {
		ids = append(ids, n.order(t, order{Executor: "nosuch"}))
	}
	eventually(t, "all have ended", func() bool { return n.undelivered() == len(ids) })
	n.leader.setRefuse(false)
	eventually(t, "all are delivered", func() bool { return n.undelivered() == 0 })
	if len(n.leader.results) != len(ids) {
		t.Errorf("%d of %d results", len(n.leader.results), len(ids))
	}
	if n.leader.calls < 5 || n.leader.calls > 20 || slices.Max(n.leader.bytes) > reportBytesMax {
		t.Errorf("%d calls of at most %d bytes", n.leader.calls, slices.Max(n.leader.bytes))
	}
}

// Live output starts anywhere, follows to the end, and is there while the result is held.
func TestExecutor_Output(t *testing.T) {
	n := newNode(t, t.TempDir())
	n.leader.setRefuse(true)
	fifo := filepath.Join(n.dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	id := n.script(t, "echo one; read line <"+fifo+"; echo $line")
	r, w := io.Pipe()
	go func() { w.CloseWithError(n.output(context.Background(), id, true, 1, w)) }()
	lines := bufio.NewReader(r)
	if line, err := lines.ReadString('\n'); line != "ne\n" || err != nil {
		t.Fatalf("got %q, %v", line, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.output(ctx, id, true, 4, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := os.WriteFile(fifo, []byte("two\n"), 0); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(lines); string(rest) != "two\n" || err != nil {
		t.Errorf("got %q, %v", rest, err)
	}
	eventually(t, "ended", func() bool { return n.running() == 0 })
	var held bytes.Buffer
	if err := n.output(t.Context(), id, true, 5, &held); held.String() != "wo\n" || err != nil {
		t.Errorf("held: got %q, %v", held.String(), err)
	}
	n.acknowledge([]int64{id})
	if err := n.output(t.Context(), id, true, 0, &held); err != errUnknownExecution {
		t.Errorf("got %v", err)
	}
}

// stop lets runs end within the grace, interrupts the others and those that wait, and leaves no goroutine and no process.
func TestExecutor_Stop(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer srv.Close()
	n := newNode(t, t.TempDir())
	quick := n.script(t, "sleep 0.1; echo quick")
	slow := n.script(t, "echo $$; sleep 1000")
	request := n.order(t, order{Executor: "http", Config: map[string]string{"method": "GET", "url": srv.URL}})
	pid, err := strconv.Atoi(strings.TrimSpace(n.printed(t, slow, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	n.full(&n.processes)
	waiting := n.script(t, "echo never")
	n.stop(time.Second)
	if n.running() != 0 || alive(pid) {
		t.Errorf("%d runs, process alive: %v", n.running(), alive(pid))
	}
	if err := n.start(dispatch{Term: 1, Number: 99, Incarnation: n.inc}); err != errStopping {
		t.Errorf("got %v", err)
	}
	for _, want := range []result{
		{Execution: quick, Outcome: outcomeSuccess, Output: []byte("quick\n")},
		{Execution: slow, Outcome: outcomeInterrupted, Output: fmt.Appendf(nil, "the node stopped\n%d\n", pid), Reason: 17},
		{Execution: request, Outcome: outcomeInterrupted, Output: []byte("the node stopped\n"), Reason: 17},
		{Execution: waiting, Outcome: outcomeInterrupted, Output: []byte("the node stopped\n"), Reason: 17},
	} {
		got := n.leader.wait(t, want.Execution)
		if diff := gocmp.Diff(want, got, cmpopts.IgnoreFields(result{}, "Node", "Incarnation", "Started", "Finished", "Process")); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	n.end()
	eventually(t, "no goroutine is left", func() bool {
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		return !bytes.Contains(stacks, []byte(".(*executor).")) && !bytes.Contains(stacks, []byte("os/exec.")) && !bytes.Contains(stacks, []byte(".(*tail)."))
	})
}

// Runs that take long do not hold up those behind them, however many they are.
func TestExecutor_SlowRunsHoldUpNobody(t *testing.T) {
	release := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			<-release
		}
	}))
	defer srv.Close()
	defer close(release)
	n := newNode(t, t.TempDir())
	for range 3 * requestStarts {
		n.order(t, order{Executor: "http", Config: map[string]string{"method": "GET", "url": srv.URL + "/slow"}})
	}
	n.leader.wait(t, n.order(t, order{Executor: "http", Config: map[string]string{"method": "GET", "url": srv.URL}}))
	for range 8 * n.processes.startsMax {
		n.shell(t, map[string]string{"command": "sleep 1000"})
	}
	n.leader.wait(t, n.shell(t, map[string]string{"command": "true"}))
}

// The http executor does what upstream does, and adds headers of its own.
func TestExecutor_HTTP(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/reply", func(w http.ResponseWriter, r *http.Request) {
		if code, err := strconv.Atoi(r.FormValue("code")); err == nil {
			w.WriteHeader(code)
		}
		io.WriteString(w, r.FormValue("body"))
	})
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s\n%s\n", r.Method, r.URL.RawQuery, body)
		for _, name := range []string{"Content-Type", "X-One", "X-Two", "Belfry-Job", "Belfry-Execution", "Belfry-Scheduled-At",
			"Belfry-Attempt", "Belfry-Node", "Belfry-Param-Start-Date", "Idempotency-Key"} {
			if v := r.Header.Values(name); v != nil {
				fmt.Fprintf(w, "%s: %s\n", name, strings.Join(v, "|"))
			}
		}
	})
	mux.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	mux.HandleFunc("/redirect", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/reply?body=there", http.StatusFound)
	})
	mux.HandleFunc("/head", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Much", strings.Repeat("a", responseHeadMax))
	})
	mux.HandleFunc("/long", func(w http.ResponseWriter, _ *http.Request) {
		w.Write(slices.Concat([]byte("first"), bytes.Repeat([]byte("a"), 300_000), []byte("end")))
	})
	srv := httptest.NewServer(mux)
	defer srv.Close()
	n := newNode(t, t.TempDir())

	const identity = "Belfry-Job: j\nBelfry-Execution: %d-n1\nBelfry-Scheduled-At: 1970-01-01T00:00:00.000000005Z\nBelfry-Attempt: 2\nBelfry-Node: n1\n"
	for _, test := range []struct {
		name    string
		config  string // JSON, with %s for the server
		outcome string
		want    string // with a leading ~ it is contained; %d is the execution
	}{
		{"Get", `{"method":"GET","url":"%s/reply?body=hello"}`, outcomeSuccess, "hello"},
		{"AnyStatus", `{"method":"GET","url":"%s/reply?code=500&body=broken"}`, outcomeSuccess, "broken"},
		{"Code", `{"method":"GET","url":"%s/reply?code=201&body=made","expectCode":"200, 201"}`, outcomeSuccess, "made"},
		{"ErrCode", `{"method":"GET","url":"%s/reply?code=404&body=nope","expectCode":"200"}`, outcomeFailed, "received response code does not match the expected code: got 404, want 200\nnope"},
		{"Body", `{"method":"GET","url":"%s/reply?body=count+42+ok","expectBody":"count [0-9]+ ok"}`, outcomeSuccess, "count 42 ok"},
		{"ErrBody", `{"method":"GET","url":"%s/reply?body=all+bad","expectBody":"good"}`, outcomeFailed, "received response body did not match the expected body\nall bad"},
		{"ErrPattern", `{"method":"GET","url":"%s/reply?body=x","expectBody":"("}`, outcomeFailed, "~executor_config.expectBody"},
		{"Empty", `{"method":"GET","url":"%s/reply?code=204"}`, outcomeSuccess, ""},
		{"Redirect", `{"method":"GET","url":"%s/redirect"}`, outcomeSuccess, "there"},
		{"RedirectedPost", `{"method":"POST","url":"%s/redirect","body":"x","expectBody":"^there$"}`, outcomeSuccess, "a redirect made a GET of the POST, without its body; give the job the URL behind the redirect\nthere"},
		{"BodyFirst", `{"method":"GET","url":"%s/long","expectBody":"^first"}`, outcomeSuccess, "~end"},
		{"DebugHides", `{"method":"GET","url":"%s/reply?body=seen","debug":"true","headers":"[\"Authorization: Bearer hunter2\",\"Cookie: hunter2\",\"X-Api-Key: hunter2\",\"X-Plain: shown\"]"}`, outcomeSuccess, "~X-Plain: shown"},
		{"ErrUserInURL", `{"method":"GET","url":"http://hunter2@127.0.0.1:9/?hunter2"}`, outcomeFailed, "~dial tcp 127.0.0.1:9"},
		{"ErrSecretURL", `{"method":"GET","url":"http://127.0.0.1:hunter2/"}`, outcomeFailed, "~executor_config.url"},
		{"ErrSecretHeader", `{"method":"GET","url":"%s/echo","headers":"[\"Authorization Bearer hunter2\"]"}`, outcomeFailed, "~executor_config.headers"},
		{"ErrSecretName", `{"method":"GET","url":"%s/echo","headers":"[\"Authorization hunter2:x\"]"}`, outcomeFailed, "~executor_config.headers"},
		{"Request", `{"method":"POST","url":"%s/echo?x=y","body":"{\"a\":1}","headers":"[\"Content-Type: application/json\",\"X-One:   padded  \",\"x-two:2\"]"}`, outcomeSuccess,
			"POST x=y\n{\"a\":1}\nContent-Type: application/json\nX-One: padded\nX-Two: 2\n" + identity + "Idempotency-Key: j/4/n1\n"},
		{"Params", `{"method":"GET","url":"%s/echo"}`, outcomeSuccess, "~Belfry-Param-Start-Date: 2026-11-01\n"},
		{"OwnIdentity", `{"method":"PUT","url":"%s/echo","headers":"[\"idempotency-key: mine\"]"}`, outcomeSuccess, "PUT \n\n" + identity + "Idempotency-Key: mine\n"},
		{"NoHeaders", `{"method":"DELETE","url":"%s/echo","headers":"[]","timeout":"abc"}`, outcomeSuccess, "~DELETE \n\nBelfry-Job"},
		{"Debug", `{"method":"GET","url":"%s/reply?body=seen","debug":"true","expectBody":"^seen$"}`, outcomeSuccess, "~GET /reply?body=seen HTTP/1.1"},
		{"ErrNoURL", `{"method":"GET"}`, outcomeFailed, "executor_config.url is empty\n"},
		{"ErrNoConfig", `null`, outcomeFailed, "executor_config.url is empty\n"},
		{"ErrNoMethod", `{"url":"%s/reply"}`, outcomeFailed, "executor_config.method is empty\n"},
		{"ErrTimeout", `{"method":"GET","url":"%s/slow","timeout":"1"}`, outcomeFailed, "no complete response within the timeout of 1s\n"},
		{"ErrHead", `{"method":"GET","url":"%s/head"}`, outcomeFailed, "~headers exceeded"},
		{"ErrRefused", `{"method":"GET","url":"http://127.0.0.1:9/"}`, outcomeFailed, "~dial tcp 127.0.0.1:9"},
		{"ErrURL", `{"method":"GET","url":"::not a url"}`, outcomeFailed, "executor_config.url: must be a URL such as https://host/path; escape special characters\n"},
		{"ErrHeaders", `{"method":"GET","url":"%s/echo","headers":"X: y"}`, outcomeFailed, "~executor_config.headers"},
		{"ErrHeader", `{"method":"GET","url":"%s/echo","headers":"[\"X\"]"}`, outcomeFailed, "~executor_config.headers"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var config map[string]string
			if err := json.Unmarshal([]byte(strings.ReplaceAll(test.config, "%s", srv.URL)), &config); err != nil {
				t.Fatal(err)
			}
			o := order{Job: "j", Group: 4, Attempt: 2, ScheduledAt: 5, Executor: "http", Config: config}
			if test.name == "Params" {
				o.Params = map[string]string{"start_date": "2026-11-01"}
			}
			id := n.order(t, o)
			got := n.leader.wait(t, id)
			want := strings.ReplaceAll(test.want, "%d", strconv.FormatInt(id, 10))
			contained, loose := strings.CutPrefix(want, "~")
			if got.Outcome != test.outcome || !loose && string(got.Output) != want || !strings.Contains(string(got.Output), contained) {
				t.Errorf("%s: got %s %q, want %s %q", test.config, got.Outcome, got.Output, test.outcome, want)
			}
			if bytes.Contains(got.Output, []byte("hunter2")) {
				t.Errorf("%s: a secret stands in the output: %q", test.config, got.Output)
			}
		})
	}

	t.Run("LongBody", func(t *testing.T) {
		id := n.order(t, order{Executor: "http", Config: map[string]string{"method": "GET", "url": srv.URL + "/long", "expectBody": "aend$"}})
		if got := n.leader.wait(t, id); len(got.Output) != outputBytesMax || got.Dropped != 300_008-outputBytesMax || got.Outcome != outcomeSuccess {
			t.Errorf("got %s, %d bytes, dropped %d", got.Outcome, len(got.Output), got.Dropped)
		}
	})
}

// TLS settings hold for the job that has them, and a renewed file is read again.
func TestExecutor_TLS(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "secret") }))
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo) // of clients that distrust it
	srv.StartTLS()
	defer srv.Close()
	n := newNode(t, t.TempDir())
	roots := filepath.Join(n.dir, "roots.pem")
	request := func(settings ...string) result {
		config := map[string]string{"method": "GET", "url": srv.URL}
		for i := 0; i < len(settings); i += 2 {
			config[settings[i]] = settings[i+1]
		}
		return n.leader.wait(t, n.order(t, order{Executor: "http", Config: config}))
	}
	if got := request(); got.Outcome != outcomeFailed || !strings.Contains(string(got.Output), "certificate") {
		t.Errorf("unknown certificate: got %s %q", got.Outcome, got.Output)
	}
	if got := request("tlsNoVerifyPeer", "true"); string(got.Output) != "secret" {
		t.Errorf("tlsNoVerifyPeer: got %s %q", got.Outcome, got.Output)
	}
	if got := request("tlsRootCAsFile", roots); !strings.Contains(string(got.Output), "executor_config.tlsRootCAsFile") {
		t.Errorf("missing file: got %q", got.Output)
	}
	if got := request("tlsCertificateFile", roots); !strings.Contains(string(got.Output), "executor_config.tlsCertificateFile") {
		t.Errorf("missing file: got %q", got.Output)
	}
	if err := os.WriteFile(roots, []byte("none"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := request("tlsRootCAsFile", roots); !strings.Contains(string(got.Output), "holds no certificate") {
		t.Errorf("bad file: got %q", got.Output)
	}
	pipe, large := filepath.Join(n.dir, "pipe"), filepath.Join(n.dir, "large.pem")
	if err := cmp.Or(syscall.Mkfifo(pipe, 0o600), os.WriteFile(large, make([]byte, tlsBytesMax+1), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, settings := range [][]string{{"tlsRootCAsFile"}, {"tlsCertificateFile"}, {"tlsCertificateFile", roots, "tlsCertificateKeyFile"}} {
		for path, want := range map[string]string{pipe: "is not a regular file", "/dev/zero": "is not a regular file", large: "is larger than 1048576 bytes"} {
			want = "executor_config." + settings[len(settings)-1] + ": " + path + " " + want
			if got := request(append(settings, path)...); got.Outcome != outcomeFailed || !strings.Contains(string(got.Output), want) {
				t.Errorf("got %s %q, want %q", got.Outcome, got.Output, want)
			}
		}
	}
	if err := os.WriteFile(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := request("tlsRootCAsFile", roots); string(got.Output) != "secret" {
		t.Errorf("tlsRootCAsFile: got %s %q", got.Outcome, got.Output)
	}
	if got := request(); got.Outcome != outcomeFailed {
		t.Errorf("settings of other jobs: got %s %q", got.Outcome, got.Output)
	}
}

// Processors run in name order; without forward one leaves a note, one that fails or is unknown leaves the output. The
// reason of a failure stays in front of a note.
func TestExecutor_Processors(t *testing.T) {
	n := newNode(t, t.TempDir())
	dir := filepath.Join(n.dir, "files")
	outside := t.TempDir()
	if err := cmp.Or(os.MkdirAll(dir, 0o700), os.Symlink(outside, filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
	const refused = "kept\n\nprocessor files: log_dir and file_name: must name a file below --files-dir, such as logs/{job}/{execution}.log\n"
	for _, test := range []struct {
		name       string
		processors string // JSON
		want       string
		file       string // of the output, with its content behind the name
	}{
		{"Log", `{"log":{}}`, "Output in belfry log", ""},
		{"LogForward", `{"log":{"forward":"true"}}`, "kept\n", ""},
		{"LogFalse", `{"log":{"forward":"false"}}`, "Output in belfry log", ""},
		{"Unknown", `{"nosuch":{"a":"b"}}`, "kept\n", ""},
		{"Files", `{"files":{}}`, "Output in DIR/job-ID-n1.log", "job-ID-n1.log kept\n"},
		{"FilesDir", `{"files":{"log_dir":"a/{job}","file_name":"{execution}"}}`, "Output in DIR/a/job/ID-n1", "a/job/ID-n1 kept\n"},
		{"Order", `{"log":{},"files":{"log_dir":"b","forward":"true"}}`, "Output in belfry log", "b/job-ID-n1.log kept\n"},
		{"UnknownForward", `{"nosuch":{"forward":"false"},"log":{"forward":"1"}}`, "kept\n", ""},
		{"ErrAbsolute", `{"files":{"log_dir":"` + outside + `"},"log":{"forward":"true"}}`, refused, ""},
		{"ErrParent", `{"files":{"log_dir":"../results"}}`, refused, ""},
		{"ErrName", `{"files":{"file_name":"../x"}}`, refused, ""},
		{"ErrLink", `{"files":{"log_dir":"link"}}`, "~path escapes from parent\n", ""},
		{"ErrDir", `{"files":{"file_name":"a"}}`, "kept\n\nprocessor files: openat a: is a directory\n", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := order{Executor: "shell", Config: map[string]string{"command": "echo kept"}}
			if err := json.Unmarshal([]byte(test.processors), &o.Processors); err != nil {
				t.Fatal(err)
			}
			id := n.order(t, o)
			named := strings.NewReplacer("DIR", dir, "ID", strconv.FormatInt(id, 10))
			part, loose := strings.CutPrefix(test.want, "~")
			if got := n.leader.wait(t, id); !loose && string(got.Output) != named.Replace(test.want) || !strings.Contains(string(got.Output), named.Replace(part)) || got.Outcome != outcomeSuccess {
				t.Errorf("got %s %q, want %q", got.Outcome, got.Output, named.Replace(test.want))
			}
			name, want, ok := strings.Cut(named.Replace(test.file), " ")
			if content, _ := os.ReadFile(filepath.Join(dir, name)); ok && string(content) != want {
				t.Errorf("%s: got %q, want %q", name, content, want)
			}
		})
	}
	if list, err := os.ReadDir(outside); err != nil || len(list) > 0 {
		t.Errorf("outside of --files-dir: %v, %v", list, err)
	}
	t.Run("Failed", func(t *testing.T) {
		id := n.order(t, order{Executor: "shell", Config: map[string]string{"shell": "true", "command": "echo kept; exit 3"}, Processors: map[string]map[string]string{"files": {"file_name": "failed"}}})
		if got, want := n.leader.wait(t, id), "exit status 3\nOutput in "+filepath.Join(dir, "failed"); string(got.Output) != want || got.Reason != len("exit status 3\n") {
			t.Errorf("got %q, reason %d, want %q", got.Output, got.Reason, want)
		}
		if content, _ := os.ReadFile(filepath.Join(dir, "failed")); string(content) != "kept\nexit status 3\n" {
			t.Errorf("got %q", content)
		}
	})
}

// A file of an output has all of it, as it comes, and those of a job are not more or older than it says.
func TestExecutor_Files(t *testing.T) {
	n := newNode(t, t.TempDir())
	dir := filepath.Join(n.dir, "files", "d")
	run := func(job, script string, settings ...string) int64 {
		files := map[string]string{"log_dir": "d"}
		for i := 0; i < len(settings); i += 2 {
			files[settings[i]] = settings[i+1]
		}
		return n.order(t, order{Job: job, Executor: "shell", Config: map[string]string{"shell": "true", "command": script}, Processors: map[string]map[string]string{"files": files}})
	}
	names := func() (names []string) {
		list, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range list {
			names = append(names, f.Name())
		}
		return names
	}
	goOn := filepath.Join(n.dir, "go-on")
	id := run("long", "yes x | head -c 400000; until test -e "+goOn+"; do sleep 0.01; done; echo end", "file_name", "{job}.log")
	size := func() int64 {
		info, err := os.Stat(filepath.Join(dir, "long.log"))
		if err != nil {
			return 0
		}
		return info.Size()
	}
	eventually(t, "the file has what there is", func() bool { return size() == 400_000 })
	if err := os.WriteFile(goOn, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if n.leader.wait(t, id); size() != 400_004 {
		t.Errorf("%d bytes, want all", size())
	}
	if n.leader.wait(t, run("long", "echo more", "file_name", "{job}.log")); size() != 400_009 {
		t.Errorf("%d bytes, want those of the second run too", size())
	}
	os.Remove(filepath.Join(dir, "long.log"))

	for _, other := range []string{"a-b-1-n1.log", "a-1-n2.log", "a-1-n1.log.gz", "b-1-n1.log"} {
		if err := os.WriteFile(filepath.Join(dir, other), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	others := names()
	var own []string
	for range 5 {
		id := run("a", "echo kept", "max_files", "3")
		n.leader.wait(t, id)
		own = append(own, fmt.Sprintf("a-%d-n1.log", id))
	}
	want := slices.Sorted(slices.Values(append(others, own[2:]...)))
	if got := names(); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, old := range own[2:4] {
		if err := os.Chtimes(filepath.Join(dir, old), time.Time{}, time.Now().Add(-2*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	id = run("a", "echo kept", "max_age", "1h")
	n.leader.wait(t, id)
	want = slices.Sorted(slices.Values(append(others, own[4], fmt.Sprintf("a-%d-n1.log", id))))
	if got := names(); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for range 2 {
		id = run("t", "true", "file_name", "{job}.{time}", "max_files", "1")
	}
	n.leader.wait(t, id)
	if got := n.leader.wait(t, run("t", "echo kept", "max_files", "0")); !strings.Contains(string(got.Output), "max_files") {
		t.Errorf("got %q", got.Output)
	}
}

// Old files go even if an output cannot be written: a disk that is full would stay so.
func TestExecutor_FilesRotateAfterErrors(t *testing.T) {
	dir := t.TempDir()
	n := newNode(t, dir)
	old := filepath.Join(dir, "files", "0-n1.log")
	err := errors.Join(os.WriteFile(old, nil, 0o600), os.Chtimes(old, time.Time{}, time.Unix(1, 0)), os.Mkdir(filepath.Join(dir, "files", "1-n1.log"), 0o700))
	if err != nil {
		t.Fatal(err)
	}
	res := n.leader.wait(t, n.order(t, order{Executor: "shell", Config: map[string]string{"command": "true"},
		Processors: map[string]map[string]string{"files": {"file_name": "{execution}.log", "max_files": "1"}}}))
	if _, err := os.Stat(old); !errors.Is(err, fs.ErrNotExist) || !bytes.Contains(res.Output, []byte("is a directory")) {
		t.Errorf("the old file is there (%v), after %q", err, res.Output)
	}
}

// A pipe at the place of an output's file, which a job can put there, is refused and not waited for.
func TestExecutor_OutputPipe(t *testing.T) {
	n := newNode(t, t.TempDir())
	pipe := filepath.Join(n.dir, "files", "job-"+executionName(n.next, "n1")+".log")
	if err := cmp.Or(os.MkdirAll(filepath.Dir(pipe), 0o700), syscall.Mkfifo(pipe, 0o600)); err != nil {
		t.Fatal(err)
	}
	got := n.leader.wait(t, n.order(t, order{Executor: "shell", Config: map[string]string{"command": "echo kept"},
		Processors: map[string]map[string]string{"files": {}}}))
	if !strings.HasPrefix(string(got.Output), "kept\n\nprocessor files: ") || got.Outcome != outcomeSuccess {
		t.Errorf("got %s %q", got.Outcome, got.Output)
	}
}

// The system's log takes the output, or the run says that it did not; there may be none where tests run.
func TestExecutor_Syslog(t *testing.T) {
	n := newNode(t, t.TempDir())
	got := n.leader.wait(t, n.order(t, order{Executor: "shell", Config: map[string]string{"command": "echo kept"},
		Processors: map[string]map[string]string{"syslog": {}}}))
	if s := string(got.Output); got.Outcome != outcomeSuccess || s != "Output in syslog" && !strings.HasPrefix(s, "kept\n\nprocessor syslog: ") {
		t.Errorf("got %s %q", got.Outcome, s)
	}
}

// A system log gets a message for each line, and one that reads nothing holds up no run for ever.
func TestWriteSyslog(t *testing.T) {
	dir := t.TempDir()
	datagrams, stream := filepath.Join(dir, "unixgram"), filepath.Join(dir, "unix")
	log, err := net.ListenPacket("unixgram", datagrams)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	l, err := net.Listen("unix", stream)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := writeSyslog([]string{filepath.Join(dir, "none"), datagrams}, time.Now().Add(patience), "job", []byte("one\r\n\ntwo")); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"one", "two"} {
		b := make([]byte, syslogBytesMax)
		n, _, err := log.ReadFrom(b)
		head, text, _ := strings.Cut(string(b[:n]), " belfry")
		if _, e := time.Parse("<78>"+time.Stamp, head); cmp.Or(err, e) != nil || text != fmt.Sprintf("[%d]: job: %s\n", os.Getpid(), want) {
			t.Errorf("got %q %v, want %q", b[:n], cmp.Or(err, e), want)
		}
	}
	for _, path := range []string{datagrams, stream} {
		if err := writeSyslog([]string{path}, time.Now().Add(50*time.Millisecond), "job", bytes.Repeat([]byte("line\n"), outputBytesMax/5)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s, which nobody reads: got %v", path, err)
		}
	}
}

// What of an http job is refused when it is stored, and what is recorded as it is. A secret is never quoted.
func TestCheckHTTPConfig(t *testing.T) {
	for key, values := range map[string]struct{ good, bad []string }{
		"url":        {[]string{"", "::not a url", "http://u:p@h/", "http://h:port/"}, []string{"http://u:hunter2@h:port/", "http://u:hunter2%@h/", "hunter2 @:"}},
		"headers":    {[]string{"", "X: y", `["A: b"]`, `["A:"]`}, []string{`["hunter2"]`, `["Authorization hunter2: x"]`, `[": hunter2"]`}},
		"expectBody": {[]string{"", "x{1000}", strings.Repeat("x", 2_000), "(a|b)*"}, []string{"(", strings.Repeat("x{1000}", 3_200), "(x{50}y){50}", strings.Repeat("x", 2_001)}},
	} {
		for _, v := range values.good {
			if err := checkHTTPConfig(map[string]string{key: v}); err != nil {
				t.Errorf("%s %.40q: %v", key, v, err)
			}
		}
		for _, v := range values.bad {
			began := time.Now()
			if err := checkHTTPConfig(map[string]string{key: v}); err == nil || !strings.Contains(err.Error(), "executor_config."+key) || strings.Contains(err.Error(), "hunter2") || len(err.Error()) > 300 {
				t.Errorf("%s %.40q: got %v, want a sentence that names the field", key, v, err)
			}
			if took := time.Since(began); took > time.Second {
				t.Errorf("%s %.40q: took %s", key, v, took)
			}
		}
	}
}

// Limits that a job may have, and those that are refused when it is stored.
func TestCheckShellConfig(t *testing.T) {
	for key, values := range map[string]struct{ good, bad []string }{
		"timeout":      {[]string{"", "10s", "1h30m", "500ms", "0s"}, []string{"10", "abc", "1d", "-1s"}},
		"env":          {[]string{"", "A=", "A=1,B=2,", "A=b\\,c", "A=" + strings.Repeat("x", 131_069)}, []string{"=x", "A=1,2", "A", "A=" + strings.Repeat("x", 131_070)}},
		"command":      {[]string{"", "'", strings.Repeat("x", 131_071), strings.Repeat("x ", 131_072)}, []string{strings.Repeat("x", 131_072), "echo '" + strings.Repeat("x", 131_072) + "'"}},
		"kill_timeout": {[]string{"", "0s", "300ms", "10m"}, []string{"10", "-1s", "10m1s"}},
		"mem_limit": {[]string{"", "1048576", "512MB", "1.5GB", "100kb", "2g", "1 MB"},
			[]string{"lots", "0", "-5", "MB", "10XB", "0MB", "inf", "nan", "1e3", "0x10", "1.2.3", "9999999999TB", "1 0MB", "1KM", "1BB", "1BK", "1KBB"}},
	} {
		for _, v := range values.good {
			if err := checkShellConfig(map[string]string{key: v}); err != nil {
				t.Errorf("%s %.40q: %v", key, v, err)
			}
		}
		for _, v := range values.bad {
			if err := checkShellConfig(map[string]string{key: v}); err == nil || !strings.Contains(err.Error(), "executor_config."+key) {
				t.Errorf("%s %.40q: got %v, want a sentence that names the field", key, v, err)
			}
		}
	}
	for s, want := range map[string]int64{"100kb": 102_400, "1.5GB": 3 << 29, "7": 7, "2T": 2 << 40, "512b": 512} {
		if got := parseBytes(s); got != want {
			t.Errorf("parseBytes(%q) = %d, want %d", s, got, want)
		}
	}
}

func TestParseStat(t *testing.T) {
	const stat = "42 (a) b (c) S 1 7 7 0 -1 4194624 100 0 0 0 1 2 0 0 20 0 1 0 500 1000000 250 18446744073709551615 1 1"
	if p, ok := parseStat([]byte(stat)); p != (proc{pid: 42, group: 7, session: 7, command: "a) b (c", forked: true, pages: 250, start: 500}) || !ok {
		t.Errorf("got %+v, %v", p, ok)
	}
	for _, bad := range []string{"", "42 (a", "42 (a) S 1 7", strings.Replace(stat, ") S", ") Z", 1)} {
		if _, ok := parseStat([]byte(bad)); ok {
			t.Errorf("%q: accepted", bad)
		}
	}
}

func TestSplitWords(t *testing.T) {
	for _, test := range []struct {
		in   string
		want []string // nil: refused
	}{
		{"", []string{}},
		{" \t\n", []string{}},
		{"a  b\tc\nd", []string{"a", "b", "c", "d"}},
		{`a\ b \'`, []string{"a b", "'"}},
		{`'a  $b\' "c  \" \$ \x"`, []string{`a  $b\`, `c  " $ \x`}},
		{`a'b'"c"d`, []string{"abcd"}},
		{`'' ""`, []string{"", ""}},
		{"a\\\nb \"c\\\nd\"", []string{"ab", "cd"}},
		{"echo a; b | c > d # e", []string{"echo", "a;", "b", "|", "c", ">", "d", "#", "e"}},
		{"größe 'ä ö'", []string{"größe", "ä ö"}},
		{`"abc`, nil}, {`'abc`, nil}, {`abc\`, nil}, {`"abc\`, nil}, {`"abc\"`, nil},
	} {
		got, err := splitWords(test.in)
		if (err != nil) != (test.want == nil) || !gocmp.Equal(got, test.want, cmpopts.EquateEmpty()) {
			t.Errorf("splitWords(%q) = %q, %v; want %q", test.in, got, err, test.want)
		}
	}
}

// Words that were quoted for a shell come back as they were.
func FuzzSplitWords(f *testing.F) {
	for _, s := range []string{"", "a b", `a\ b 'c "d' "e'\"f"`, "'", `\`, "a\\\nb", `""`, "\x00\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		words, err := splitWords(s)
		if err != nil {
			return
		}
		for name, quote := range map[string]func(string) string{
			"single": func(w string) string { return "'" + strings.ReplaceAll(w, "'", `'\''`) + "'" },
			"double": func(w string) string {
				return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "$", `\$`, "`", "\\`").Replace(w) + `"`
			},
		} {
			var quoted []string
			for _, w := range words {
				quoted = append(quoted, quote(w))
			}
			again, err := splitWords(strings.Join(quoted, " "))
			if err != nil || !slices.Equal(again, words) {
				t.Errorf("%q: %s quotes: got %q, %v; want %q", s, name, again, err, words)
			}
		}
	})
}

// A file of results is never trusted: whatever is accepted is a result, and is written and read again unchanged.
func FuzzParseResult(f *testing.F) {
	f.Add([]byte(`{"execution":1,"started":1,"finished":2,"outcome":"success","output":"YQ==","dropped":3}`))
	f.Add([]byte(`{"execution":1,"outcome":"lost"}`))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		res, err := parseResult(data, nil)
		if err != nil {
			return
		}
		written, err := json.Marshal(res)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := parseResult(written, nil); err != nil || !gocmp.Equal(again, res, cmpopts.EquateEmpty()) {
			t.Errorf("%q: got %+v, %v; want %+v", data, again, err, res)
		}
	})
}

// The output buffer against a plain one, with reads at every size and place.
func TestTail(t *testing.T) {
	for _, seed := range []uint64{1, 2, 3} {
		rnd := rand.New(rand.NewPCG(seed, 0))
		var got tail
		var want []byte
		for range 60 {
			p := make([]byte, rnd.IntN(40_000))
			for i := range p {
				p[i] = byte(rnd.Uint32())
			}
			if rnd.IntN(2) == 0 {
				got.Write(p)
			} else if n, err := got.ReadFrom(bytes.NewReader(p)); n != int64(len(p)) || err != nil {
				t.Fatalf("read %d, %v", n, err)
			}
			want = append(want, p...)
			from := rnd.IntN(len(want) + 10)
			oldest := max(0, len(want)-outputBytesMax)
			var b bytes.Buffer
			if err := got.copyTo(t.Context(), &b, int64(-from-1), false); err != nil || !bytes.Equal(b.Bytes(), want[max(0, len(want)-outputBytesMax, len(want)-from-1):]) {
				t.Fatalf("seed %d: copyTo(%d) differs at %d bytes", seed, -from-1, len(want))
			}
			b.Reset()
			if err := got.copyTo(t.Context(), &b, int64(from), false); err != nil || !bytes.Equal(b.Bytes(), want[min(len(want), max(from, oldest)):]) {
				t.Fatalf("seed %d: copyTo(%d) differs at %d bytes", seed, from, len(want))
			}
			reason := "why\n"[:4*rnd.IntN(2)]
			all, dropped := got.final(reason)
			kept := want[max(0, len(want)+len(reason)-outputBytesMax):]
			if string(all) != reason+string(kept) || dropped != int64(len(want)-len(kept)) {
				t.Fatalf("seed %d: final differs at %d bytes", seed, len(want))
			}
		}
	}
}

// An id is added once, neighbours are not confused, negative ids included.
// TestExecutor_Forgets: a node remembers what it took for as long as that may be
// ordered again, and no longer.
func TestExecutor_Forgets(t *testing.T) {
	n := newNode(t, t.TempDir())
	n.full(&n.processes)
	order := func(id, startable int64) {
		t.Helper()
		d := dispatch{Term: 1, Number: 1, Incarnation: n.inc, Startable: startable, Orders: []order{{Execution: id, Executor: executorShell}}}
		if err := n.start(d); err != nil {
			t.Fatal(err)
		}
		n.mu.Lock()
		if n.runs[id] != nil { // it has ended
			delete(n.runs, id)
			n.working.Done()
		}
		n.processes.queue = nil
		n.mu.Unlock()
	}
	const step = 1000
	for i := range int64(20_000) {
		order(i*step, (i-10)*step)
	}
	if len(n.taken) > 3*takenSlack {
		t.Errorf("%d entries are kept of what cannot be ordered any more", len(n.taken))
	}
	order(5*step, 0)
	order(19_995*step, 0)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.taken.add(19_995 * step) {
		t.Error("what may be ordered again was forgotten")
	}
	if n.taken[5*step>>6] != 0 {
		t.Error("what may not be started any more was taken")
	}
}

func TestIDSet(t *testing.T) {
	s := idSet{}
	for _, id := range []int64{0, 1, 63, 64, 127, 128, -1, -64, 1 << 62} {
		if !s.add(id) || s.add(id) {
			t.Errorf("id %d: added not once", id)
		}
	}
}

func BenchmarkExecutor_http(b *testing.B) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }))
	defer srv.Close()
	n := newNode(b, b.TempDir())
	const burst = 5_000
	var usage0, usage1 syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &usage0)
	for b.Loop() {
		orders := make([]order, burst)
		for i := range orders {
			orders[i] = order{Execution: n.next, Job: "job", Executor: "http", Config: map[string]string{"method": "GET", "url": srv.URL}}
			n.next++
		}
		n.number++
		if err := n.start(dispatch{Term: 1, Number: n.number, Incarnation: n.inc, Orders: orders}); err != nil {
			b.Fatal(err)
		}
		n.leader.wait(b, n.next-1)
		eventually(b, "delivery", func() bool { return n.running() == 0 && n.undelivered() == 0 })
	}
	syscall.Getrusage(syscall.RUSAGE_SELF, &usage1)
	runs := float64(b.N * burst)
	b.ReportMetric(runs/b.Elapsed().Seconds(), "runs/s")
	b.ReportMetric((cpu(usage1)-cpu(usage0)).Seconds()*1e6/runs, "cpu-us/run")
	b.ReportMetric(float64(usage1.Maxrss-usage0.Maxrss)/1024, "MB-extra")
	b.ReportMetric(float64(n.leader.calls)/float64(b.N), "reports/burst")
}

func cpu(u syscall.Rusage) time.Duration { return time.Duration(u.Utime.Nano() + u.Stime.Nano()) }

func BenchmarkExecutor_shell(b *testing.B) {
	n := newNode(b, b.TempDir())
	const burst = 2_000
	for b.Loop() {
		orders := make([]order, burst)
		for i := range orders {
			orders[i] = order{Execution: n.next, Job: "job", Executor: "shell", Config: map[string]string{"command": "true"}}
			n.next++
		}
		n.number++
		if err := n.start(dispatch{Term: 1, Number: n.number, Incarnation: n.inc, Orders: orders}); err != nil {
			b.Fatal(err)
		}
		eventually(b, "delivery", func() bool { return n.running() == 0 && n.undelivered() == 0 })
	}
	b.ReportMetric(float64(b.N*burst)/b.Elapsed().Seconds(), "runs/s")
}

// BenchmarkBareProcess is what the machine can do: start and wait, in as many goroutines as there are cores.
func BenchmarkBareProcess(b *testing.B) {
	for _, workers := range []int{1, 2, 4, 8} {
		b.Run(strconv.Itoa(workers), func(b *testing.B) {
			b.SetParallelism(1)
			var wg sync.WaitGroup
			per := b.N/workers + 1
			for range workers {
				wg.Go(func() {
					for range per {
						if err := exec.Command("true").Run(); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(per*workers)/b.Elapsed().Seconds(), "runs/s")
		})
	}
}

// What follows a change of protocols is no body: a server that goes on to hold the connection holds up neither the run nor
// the node's stop.
func TestExecutor_SwitchingProtocols(t *testing.T) {
	done := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		<-done
	}))
	defer srv.Close()
	defer close(done)
	n := newNode(t, t.TempDir())
	res := n.leader.wait(t, n.order(t, order{Executor: "http", Config: map[string]string{
		"method": "GET", "url": srv.URL, "timeout": "1", "expectCode": "101", "headers": `["Connection: Upgrade", "Upgrade: websocket"]`}}))
	if res.Outcome != outcomeSuccess {
		t.Errorf("%s: %s", res.Outcome, res.Output)
	}
}

// TestExecutor_HTTPOnce: a request that a server took, and died over, is not
// sent again within its attempt.
func TestExecutor_HTTPOnce(t *testing.T) {
	for _, config := range []string{
		`{"method":"GET","url":"%s"}`, `{"method":"HEAD","url":"%s"}`, `{"method":"OPTIONS","url":"%s"}`, `{"method":"GET","url":"%s","body":"x"}`,
		`{"method":"POST","url":"%s"}`, `{"method":"POST","url":"%s","body":"x"}`, `{"method":"DELETE","url":"%s","headers":"[\"X-Idempotency-Key: k\"]"}`,
	} {
		var requests, keys atomic.Int64
		var connections sync.Map
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Idempotency-Key") != "" {
				keys.Add(1)
			}
			connections.Store(r.RemoteAddr, true)
			switch requests.Add(1) { // those before the last leave a connection that is used again
			case 1:
				http.Redirect(w, r, "/", http.StatusTemporaryRedirect)
			case 2:
			default:
				panic(http.ErrAbortHandler)
			}
		}))
		n := newNode(t, t.TempDir())
		for _, want := range []string{outcomeSuccess, outcomeFailed} {
			var c map[string]string
			if err := json.Unmarshal(fmt.Appendf(nil, config, server.URL), &c); err != nil {
				t.Fatal(err)
			}
			if res := n.leader.wait(t, n.order(t, order{Executor: executorHTTP, Config: c})); res.Outcome != want {
				t.Errorf("%s: %s %s, want %s", config, res.Outcome, res.Output, want)
			}
		}
		used := 0
		connections.Range(func(any, any) bool { used++; return true })
		if requests.Load() != 3 || keys.Load() != 3 || used != 1 {
			t.Errorf("%s: a run with a redirect and one without made %d requests, %d with a key, on %d connections", config, requests.Load(), keys.Load(), used)
		}
		server.Close()
	}
}

// ---- What a node's operator forbids

// TestExecutor_Limits: neither a URL, nor a redirect, nor su, nor an executor
// that is switched off leads around what the operator said.
func TestExecutor_Limits(t *testing.T) {
	srv := httptest.NewServer(http.RedirectHandler("http://169.254.169.254/latest/meta-data/", http.StatusFound))
	defer srv.Close()
	port := srv.URL[strings.LastIndex(srv.URL, ":"):]
	request := func(target string) order {
		return order{Executor: "http", Config: map[string]string{"method": "GET", "url": target, "timeout": "5"}}
	}
	tls := request("https://169.254.169.254/")
	tls.Config["tlsNoVerifyPeer"] = "true"
	shell := order{Executor: "shell", Config: map[string]string{"command": "true"}}
	su := func(who string) order {
		return order{Executor: "shell", Config: map[string]string{"command": "true", "su": who}}
	}
	for _, c := range []struct {
		name   string
		limits nodeLimits
		order  order
		want   string // part of the output
	}{
		{"Metadata", nodeLimits{}, request("http://169.254.169.254/"), "--http-allow-metadata"},
		{"MetadataMapped", nodeLimits{}, request("http://[::ffff:a9fe:a9fe]/"), "--http-allow-metadata"},
		{"MetadataTLS", nodeLimits{}, tls, "--http-allow-metadata"},
		{"Redirect", nodeLimits{}, request(srv.URL), "--http-allow-metadata"},
		{"Private", nodeLimits{DenyPrivate: true}, request(srv.URL), "--http-deny-private"},
		{"PrivateName", nodeLimits{DenyPrivate: true}, request("http://localhost" + port), "--http-deny-private"},
		{"ShellOff", nodeLimits{Executors: []string{"http"}}, shell, "--executors"},
		{"HTTPOff", nodeLimits{Executors: []string{"shell"}}, request(srv.URL), "--executors"},
		{"SuNobody", nodeLimits{}, su("root"), "--allow-su"},
		{"SuGroup", nodeLimits{AllowSu: []string{"nobody"}}, su("nobody:root"), "--allow-su"},
		{"SuOther", nodeLimits{AllowSu: []string{"nobody"}}, su("root"), "--allow-su"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t, t.TempDir())
			n.cfg.Limits = c.limits
			var err error
			if n.transport, err = newTransport(nil, c.limits); err != nil {
				t.Fatal(err)
			}
			got := n.leader.wait(t, n.order(t, c.order))
			if got.Outcome != outcomeFailed || !strings.Contains(string(got.Output), c.want) {
				t.Errorf("got %s %q, want a failure that names %s", got.Outcome, got.Output, c.want)
			}
		})
	}
}

// TestExecutor_SecretHeaders holds that what looks secret does not follow to another host, and comes back with the job's own.
func TestExecutor_SecretHeaders(t *testing.T) {
	var got atomic.Value
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got.Store(r.Header) }))
	defer other.Close()
	var srv *httptest.Server
	srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			http.Redirect(w, r, map[string]string{"own": srv.URL + "/there", "other": other.URL}[r.FormValue("to")], http.StatusTemporaryRedirect)
		}
		got.Store(r.Header)
	}))
	defer srv.Close()
	n := newNode(t, t.TempDir())
	for to, want := range map[string]bool{"own": true, "other": false} {
		config := map[string]string{"method": "GET", "url": srv.URL + "/?to=" + to, "headers": `["X-Api-Key: k","Authorization: k","Cookie: k=k","X-Auth-Token: k","X-Plain: p"]`}
		if res := n.leader.wait(t, n.order(t, order{Executor: "http", Config: config})); res.Outcome != outcomeSuccess {
			t.Fatalf("%s: %s %s", to, res.Outcome, res.Output)
		}
		h := got.Load().(http.Header)
		for _, name := range []string{"X-Api-Key", "Authorization", "Cookie", "X-Auth-Token"} {
			if (h.Get(name) != "") != want {
				t.Errorf("to %s host: %s is %q", to, name, h.Get(name))
			}
		}
		if h.Get("X-Plain") == "" || h.Get("Idempotency-Key") == "" {
			t.Errorf("to %s host: got %v, want X-Plain and Idempotency-Key too", to, h)
		}
	}
}

// TestExecutor_Proxy holds that the operator's limits are for the target, however its address is written, and not for
// the proxy. net/http reads the environment once, so that it takes a process of its own.
func TestExecutor_Proxy(t *testing.T) {
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "by proxy to %s", r.URL.Host) }))
	defer proxy.Close()
	cmd := exec.Command(os.Args[0], "-test.run=^TestExecutorChild$")
	cmd.Env = append(os.Environ(), "EXECUTOR_CHILD=proxy:"+t.TempDir(), "HTTP_PROXY="+proxy.URL)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSpace(string(out)), "\n")
	for i, c := range proxied {
		if i >= len(got) || !strings.Contains(got[i], c.want) {
			t.Fatalf("%s: got %q, want %q", c.host, got[min(i, len(got)-1)], c.want)
		}
	}
}

// proxied are hosts of URLs, and what comes of a request to each through a proxy by a node that denies private addresses.
var proxied = []struct{ host, want string }{
	{"example.com", "by proxy to example.com"},
	{"192.0.2.1", "by proxy to 192.0.2.1"},
	{"192.0.2.1.", "by proxy to 192.0.2.1."},
	{"1.2.3.4.5", "by proxy to 1.2.3.4.5"},
	{"0xg", "by proxy to 0xg"},
	{"169.254.169.254", "metadata service"},
	{"169.254.169.254.", "metadata service"},
	{"2852039166", "metadata service"},
	{"0xa9fea9fe", "metadata service"},
	{"0xA9.254.0xa9fe", "metadata service"},
	{"0251.0376.0251.0376", "metadata service"},
	{"025177524776", "metadata service"},
	{"[fd00:ec2::254]", "metadata service"},
	{"10.0.0.1", "private address"},
	{"10.1", "private address"},
	{"0xc0.168.257", "private address"},
}

// TestExecutor_Printed holds that a node says the end of what runs there, or is held there, has printed, up to a bound.
func TestExecutor_Printed(t *testing.T) {
	n := newNode(t, t.TempDir())
	n.leader.setRefuse(true)
	short := n.script(t, "echo begun; sleep 1000")
	long := n.script(t, "yes x | head -c 300000; sleep 1000")
	ended := n.script(t, "echo ended; exit 3")
	n.printed(t, short, "begun")
	n.printed(t, long, strings.Repeat("x\n", 100_000))
	eventually(t, "one ended", func() bool { return n.undelivered() == 1 })
	want := map[int64][]byte{short: []byte("begun\n"), ended: []byte("exit status 3\nended\n"), long: append([]byte("\n"), strings.Repeat("x\n", printedBytesMax/2)...)}
	for range 2 { // the second time what is held is on disk only
		if diff := gocmp.Diff(want, n.executor.printed([]int64{short, long, ended, 99})); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if err := n.storeOlderThan(0); err != nil {
			t.Fatal(err)
		}
	}
	if held, _ := n.ask(question{Term: 1, Number: n.number, All: true}); held.Held[0].Reason != len("exit status 3\n") {
		t.Errorf("%+v: want the reason to be the first line", held.Held)
	}
	busy := &executor{runs: map[int64]*run{}}
	ids := make([]int64, 300)
	for i := range ids {
		ids[i] = int64(i)
		busy.runs[ids[i]] = &run{}
		busy.runs[ids[i]].out.Write(make([]byte, printedBytesMax))
	}
	if got := len(busy.printed(ids)); got != printedAllMax/printedBytesMax {
		t.Errorf("%d executions, want %d", got, printedAllMax/printedBytesMax)
	}
}
