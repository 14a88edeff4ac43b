package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// fakeNode runs nothing: what it was ordered ends when the test says so.
type fakeNode struct {
	inc uint64

	mu        sync.Mutex
	orders    []order          // not ended, oldest first; guarded by mu
	killed    map[int64]string // why; guarded by mu
	printedBy map[int64]*tail  // guarded by mu
	broken    error            // of the connection to it
}

func newFakeNode(inc uint64) *fakeNode {
	return &fakeNode{inc: inc, killed: map[int64]string{}, printedBy: map[int64]*tail{}}
}

func (n *fakeNode) start(d dispatch) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, o := range d.Orders {
		n.orders = append(n.orders, o)
		n.printedBy[o.Execution] = &tail{}
	}
	return nil
}

// ask answers that all that it was ordered goes on.
func (n *fakeNode) ask(q question) (answer, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	a := answer{Incarnation: n.inc}
	for _, o := range n.orders {
		a.Running = append(a.Running, o.Execution)
	}
	return a, nil
}

func (n *fakeNode) kill(k kill) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.printedBy[k.Execution] == nil {
		return errUnknownExecution
	}
	n.killed[k.Execution] = k.Why
	return nil
}

func (n *fakeNode) output(ctx context.Context, execution int64, follow bool, from int64, w io.Writer) error {
	if n.broken != nil {
		return n.broken
	}
	n.mu.Lock()
	out := n.printedBy[execution]
	n.mu.Unlock()
	if out == nil {
		return errUnknownExecution
	}
	return out.copyTo(ctx, w, from, follow)
}

func (n *fakeNode) printed(ids []int64) map[int64][]byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	found := map[int64][]byte{}
	for _, id := range ids {
		var out bytes.Buffer
		n.printedBy[id].copyTo(context.Background(), &out, -printedBytesMax-1, false) // to a buffer: cannot fail
		found[id] = out.Bytes()
	}
	return found
}

func (n *fakeNode) counts() (running, undelivered int) { return 0, 0 }

// print adds a line to the output of the oldest execution.
func (n *fakeNode) print(line string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.printedBy[n.orders[0].Execution].Write([]byte(line + "\n"))
}

// finish ends the oldest execution.
func (n *fakeNode) finish(outcome string) result {
	n.mu.Lock()
	defer n.mu.Unlock()
	o := n.orders[0]
	n.orders = n.orders[1:]
	reason := ""
	if why, ok := n.killed[o.Execution]; ok {
		outcome, reason = outcomeKilled, why+"\n"
	}
	out := n.printedBy[o.Execution]
	delete(n.printedBy, o.Execution)
	out.close()
	r := result{Execution: o.Execution, Node: "node1", Incarnation: n.inc, Started: time.Now().UnixNano(), Finished: time.Now().UnixNano(), Outcome: outcome}
	r.Output, r.Dropped = out.final(reason)
	r.Reason = len(reason)
	return r
}

// forget has the node lose all that it was ordered.
func (n *fakeNode) forget() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.orders = nil
	clear(n.printedBy)
}

// testServer is a server but for its listeners, the cluster and its node: what
// is proposed is committed and applied at once. It lives in a synctest bubble,
// so that its clock stands still unless a test waits.
type testServer struct {
	t       testing.TB
	api     *api
	handler http.Handler
	node    *fakeNode
	plane   *plane
	stop    func()

	mu   sync.Mutex // held by the writer
	last uint64     // index of the log; guarded by mu
}

// newTestServer starts a server on the data directory dir.
func newTestServer(t testing.TB, dir string, incarnation uint64) *testServer {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	st, err := openStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	disk, err := st.saved()
	if err != nil {
		t.Fatal(err)
	}
	s := &testServer{t: t, node: newFakeNode(incarnation), last: disk.Last}
	if err := st.exec(`INSERT OR REPLACE INTO nodes VALUES ('node1', '{"role":"dkron"}', 0)`); err != nil { // the files name indexes of the log
		t.Fatal(err)
	}
	tags := map[string]string{"role": "dkron"}
	sched := newScheduler(schedulerConfig{Catchup: time.Minute, ExecutionsKept: 100, AuditKept: 365 * 24 * time.Hour, AuditKeptBytes: 256_000_000, Timezone: "UTC", LostAfter: 5 * time.Minute}, st, log)
	sched.spawn = func(task func()) { task() } // orders are with the node before the answer is with the client
	sched.cluster = &fakeCluster{
		onPropose: s.propose,
		onNodes:   func() []node { return []node{{Name: "node1", Incarnation: incarnation, Tags: tags}} },
		onStart:   func(_ string, d dispatch) error { return s.node.start(d) },
		onAsk:     func(_ string, q question) (answer, error) { return s.node.ask(q) },
		onEnd:     func(_ string, k kill) error { return s.node.kill(k) },
	}
	s.plane = newTestPlane(t, "node1", s.node, tags)
	s.plane.server.store = st
	s.api = &api{node: "node1", store: st, scheduler: sched, plane: s.plane, quit: func() {}, log: log}
	s.handler = s.api.handler()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- sched.lead(ctx, s.last+1) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-ended, st.check(), st.close()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(s.stop)
	// In a bubble every test begins at the same time, and between two ticks.
	<-time.After(time.Until(time.Now().Truncate(time.Second).Add(1500 * time.Millisecond)))
	return s
}

// fakeCluster is a replicator that tests put together.
type fakeCluster struct {
	onPropose func(context.Context, *command) (applied, error)
	onNodes   func() []node
	onStart   func(string, dispatch) error
	onAsk     func(string, question) (answer, error)
	onEnd     func(string, kill) error
}

func (f *fakeCluster) propose(ctx context.Context, c *command) (applied, error) {
	return f.onPropose(ctx, c)
}
func (f *fakeCluster) nodes() []node                               { return f.onNodes() }
func (f *fakeCluster) start(node string, d dispatch) error         { return f.onStart(node, d) }
func (f *fakeCluster) ask(node string, q question) (answer, error) { return f.onAsk(node, q) }
func (f *fakeCluster) left(string) bool                            { return false }
func (f *fakeCluster) conditions() map[string]string               { return nil }
func (f *fakeCluster) end(node string, k kill) error               { return f.onEnd(node, k) }

// fake returns the cluster of a scheduler under test.
func (s *scheduler) fake() *fakeCluster {
	if s.cluster == nil {
		s.cluster = &fakeCluster{}
	}
	return s.cluster.(*fakeCluster)
}

// newTestPlane returns the plane of a server that leads a cluster of one and that nobody else reaches. Its protocol is
// in memory. Without a runner it is an agent's.
func newTestPlane(t testing.TB, name string, runner runner, tags map[string]string) *plane {
	p := &plane{log: slog.New(slog.DiscardHandler), runner: runner, beatNow: make(chan struct{}, 1),
		known: map[string]*contact{}, problems: map[string]string{}, calls: &http.Client{}, streams: &http.Client{}, beats: &http.Client{}}
	p.cfg.record = record{Name: name, ID: "id1", Addr: "127.0.0.1:8946", Tags: tags, Server: runner != nil, Status: memberAlive, Cluster: "c"}
	p.cfg.BeatTime, p.self = time.Second, p.cfg.record
	if runner == nil {
		return p
	}
	self := server{name, "id1"}
	c := &cluster{plane: p, log: p.log, tickTime: tickTime, events: make(chan func() error), stopped: make(chan struct{}),
		awaited: map[chan struct{}]uint64{}}
	c.raft = newTestRaft(self, []server{self}, 1)
	c.raft.tick()
	p.server = c
	step := func() {
		settle(c.raft)
		st := c.raft.status()
		c.view.Store(&st)
	}
	step()
	c.progress.Store(&progress{})
	c.leaderTerm.Store(c.status().Term)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	go func() {
		for {
			select {
			case event := <-c.events:
				event()
				step()
			case <-ctx.Done():
				return
			}
		}
	}()
	return p
}

// follow makes the server one that does not lead; the leader serves calls with h, where nil is that there is none.
func (s *testServer) follow(h http.HandlerFunc) { followIn(s.plane, h) }

func followIn(p *plane, h http.HandlerFunc) {
	leader := server{"leader", "id-leader"}
	if p.server != nil {
		p.server.leaderTerm.Store(0)
		st := raftStatus{}
		if h != nil {
			st.Leader = leader
		}
		p.server.view.Store(&st)
	}
	if h == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known[leader.ID] = &contact{record: record{Name: leader.Name, ID: leader.ID, Addr: "leader:1", Server: true, Leads: true,
		Status: memberAlive, Cluster: "c"}, lastSeen: time.Now().Add(24 * time.Hour)}
	there := roundTrip(func(r *http.Request) (*http.Response, error) {
		w := httptest.NewRecorder()
		if r.Body == nil {
			r.Body = http.NoBody
		}
		var gone any
		func() {
			defer func() { gone = recover() }()
			h(w, r)
		}()
		if err, ok := gone.(error); ok {
			return nil, err
		}
		resp := w.Result()
		resp.Request = r
		return resp, nil
	})
	p.calls.Transport, p.streams.Transport = there, there
}

// propose is the whole cluster.
func (s *testServer) propose(_ context.Context, c *command) (applied, error) {
	data, err := c.encode()
	if err != nil {
		return applied{}, err
	}
	if len(data) > commandBytesMax {
		return applied{}, errTooLarge
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	if err := s.api.store.persist(nil, []entry{{Index: s.last, Term: 1, Kind: entryCommand, Data: data}}); err != nil {
		return applied{}, err
	}
	results, err := s.api.store.applyUpTo(s.last)
	if err != nil {
		return applied{}, err
	}
	s.api.scheduler.noteApplied(results[0])
	return results[0], results[0].Err
}

// wait lets the time of the bubble pass, and what it brings be done.
func wait(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// finish ends the oldest execution and has it recorded.
func (s *testServer) finish(outcome string) {
	s.t.Helper()
	if _, err := s.api.scheduler.report(s.t.Context(), []result{s.node.finish(outcome)}); err != nil {
		s.t.Fatal(err)
	}
}

// do sends a request.
func (s *testServer) do(method, target, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.Host = "localhost"
	s.handler.ServeHTTP(w, r)
	return w
}

// The API files hold blocks between lines of "===". A block is a request, a
// line of "---", and the answer; or lines of directives to the server:
//
//	@ wait 2s            the clock moves
//	@ print TEXT         the oldest execution prints a line
//	@ finish OUTCOME     the oldest execution ends
//	@ forget             the node loses its executions
//	@ follow             the server does not lead any more
//	@ dead ID            a server of that id is known, and has left
//
// Lines that begin with # are comments. ${x*1000} in a request is a thousand
// x; the pseudo header "Broken: yes" breaks the body off at its end.

// exchange is a block of an API file, with the answer that it got.
type exchange struct {
	method, target string
	status         int
	text           string // of the whole block
}

// apiFiles returns the API files without their extensions.
func apiFiles(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/api/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no API files", err)
	}
	return files
}

// TestAPI_Golden plays each file against a server of its own.
func TestAPI_Golden(t *testing.T) {
	for _, file := range apiFiles(t) {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				text, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				s := newTestServer(t, t.TempDir(), 7)
				var blocks []string
				for _, b := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n===\n") {
					blocks = append(blocks, s.play(b).text)
				}
				golden(t, "api/"+strings.TrimSuffix(filepath.Base(file), ".txt"), strings.Join(blocks, "\n===\n")+"\n")
			})
		})
	}
}

// play plays one block and returns it with the answer that it got.
func (s *testServer) play(block string) exchange {
	request, _, _ := strings.Cut(block, "\n---")
	var lines []string
	for line := range strings.SplitSeq(request, "\n") {
		if !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	if strings.HasPrefix(lines[0], "@ ") {
		for _, line := range lines {
			s.direct(strings.Fields(strings.TrimPrefix(line, "@ ")))
		}
		return exchange{text: block}
	}
	r := s.parseRequest(strings.Join(lines, "\n"))
	ctx, leave := context.WithTimeout(r.Context(), 20*time.Second) // what goes on for ever is left then
	defer leave()
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, r.WithContext(ctx))
	var out strings.Builder
	fmt.Fprintf(&out, "%s\n--- %d %s\n", request, w.Code, http.StatusText(w.Code))
	if size := w.Header().Get("Content-Length"); size != "" && size != strconv.Itoa(w.Body.Len()) && r.Method != http.MethodHead {
		s.t.Errorf("%s: Content-Length is %s of %d bytes", request, size, w.Body.Len())
	}
	if strings.HasPrefix(w.Header().Get("Content-Type"), "application/json") {
		w.Header().Del("Content-Length") // it changes with times and ids
	}
	w.Header().Del("Cache-Control") // the same everywhere: TestACL_Routes
	for _, name := range sortedKeys(w.Header()) {
		fmt.Fprintf(&out, "%s: %s\n", name, strings.Join(w.Header()[name], ", "))
	}
	if w.Body.Len() > 0 {
		fmt.Fprintf(&out, "\n%s", shorten(w.Body.String()))
	}
	return exchange{method: r.Method, target: r.URL.Path, status: w.Code, text: strings.TrimRight(out.String(), "\n")}
}

// shorten keeps what is too long for a reader out of a golden file.
func shorten(text string) string {
	const most = 4000
	if len(text) <= most {
		return text
	}
	return text[:most/20] + "\n… and more …"
}

func (s *testServer) direct(words []string) {
	switch words[0] {
	case "wait":
		d, err := time.ParseDuration(words[1])
		if err != nil {
			s.t.Fatal(err)
		}
		wait(d)
	case "print":
		s.node.print(strings.Join(words[1:], " "))
	case "finish":
		s.finish(words[1])
	case "forget":
		s.node.forget()
	case "follow":
		s.follow(nil)
	case "dead":
		s.plane.known[words[1]] = &contact{record: record{Name: words[1], ID: words[1], Addr: "127.0.0.1:1", Server: true, Status: memberLeft}, lastSeen: time.Now()}
	default:
		s.t.Fatalf("no directive %q", words)
	}
}

var repeated = regexp.MustCompile(`\$\{(.)\*(\d+)\}`)

// parseRequest reads a request: a line with method and target, headers, an
// empty line, a body.
func (s *testServer) parseRequest(text string) *http.Request {
	text = repeated.ReplaceAllStringFunc(text, func(m string) string {
		part := repeated.FindStringSubmatch(m)
		n, err := strconv.Atoi(part[2])
		if err != nil {
			s.t.Fatal(err)
		}
		return strings.Repeat(part[1], n)
	})
	head, body, _ := strings.Cut(text, "\n\n")
	lines := strings.Split(head, "\n")
	method, target, _ := strings.Cut(lines[0], " ")
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.Host = "localhost"
	for _, line := range lines[1:] {
		k, v, _ := strings.Cut(line, ": ")
		r.Header.Set(k, v)
		if k == "Host" {
			r.Host = v
		}
	}
	if r.Header.Get("Broken") != "" {
		r.Body = io.NopCloser(io.MultiReader(strings.NewReader(body), brokenReader{}))
	}
	return r
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// contract returns the operations of the OpenAPI document, as patterns of the
// route table, with the statuses that each may answer.
func contract(t *testing.T) map[string][]int {
	t.Helper()
	doc, err := web.ReadFile("web/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	ops := map[string][]int{}
	var path, op string
	for line := range strings.SplitSeq(string(doc), "\n") {
		word := strings.TrimSuffix(strings.TrimLeft(line, " "), ":")
		switch indent := len(line) - len(strings.TrimLeft(line, " ")); {
		case indent == 0:
			path = ""
		case indent == 2 && strings.HasPrefix(word, "/"):
			path = "/v1" + strings.ReplaceAll(word, "{job_name}", "{job}")
			if word == "/health" || word == "/metrics" || word == "/debug/vars" {
				path = word
			}
			if word == "/" {
				path = "/v1/{$}"
			}
		case path != "" && indent == 4 && slices.Contains([]string{"get", "put", "post", "patch", "delete"}, word):
			op = strings.ToUpper(word) + " " + path
			ops[op] = nil
		case path != "" && indent == 8 && strings.HasPrefix(word, `"`):
			status, err := strconv.Atoi(word[1:4])
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			ops[op] = append(ops[op], status)
		}
	}
	return ops
}

// TestAPI_Contract holds the route table and the golden files against the
// OpenAPI document: an operation has a route, and a recorded answer of each
// status that it may have, other than those that say that no leader was there.
// The metrics differ from run to run, so do tokens, and a backup is no text; they have tests of their own.
func TestAPI_Contract(t *testing.T) {
	ops := contract(t)
	routes := map[string]bool{}
	mux := http.NewServeMux()
	for _, route := range (&api{}).routes() {
		pattern := route.pattern
		routes[pattern] = true
		if ops[pattern] == nil && pattern != "GET /v1" {
			t.Errorf("%s: not in the document", pattern)
		}
		mux.HandleFunc(pattern, func(http.ResponseWriter, *http.Request) {})
	}
	recorded := map[string]bool{}
	secret := regexp.MustCompile(` /v1/acl/(tokens|bootstrap|self)`)
	request := regexp.MustCompile(`(?m)^(GET|PUT|POST|PATCH|DELETE) (\S+)$`)
	status := regexp.MustCompile(`(?m)^--- (\d+)`)
	for _, file := range apiFiles(t) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for block := range strings.SplitSeq(string(text), "\n===\n") {
			asked, answered := request.FindStringSubmatch(block), status.FindStringSubmatch(block)
			if asked == nil || answered == nil {
				continue
			}
			target := repeated.ReplaceAllString(asked[2], "$1")
			_, pattern := mux.Handler(httptest.NewRequest(asked[1], target, nil))
			recorded[pattern+" "+answered[1]] = true
		}
	}
	for _, op := range sortedKeys(ops) {
		if !routes[op] {
			t.Errorf("%s: no route", op)
		}
		for _, status := range ops[op] {
			if status < 503 && op != "GET /metrics" && op != "GET /debug/vars" && op != "GET /v1/backup" && !secret.MatchString(op) && !recorded[fmt.Sprint(op, " ", status)] {
				t.Errorf("%s: no golden case answers %d", op, status)
			}
		}
	}
}

// TestAPI_QueryParams holds the parameters that routes read in a query against the OpenAPI document.
func TestAPI_QueryParams(t *testing.T) {
	doc, err := web.ReadFile("web/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	query := map[string]string{} // component → name of the parameter
	for _, m := range regexp.MustCompile(`(?m)^    (\w+): ?(?:\{|\n      )name: ([\w-]+)(?:,|\n     ) in: query`).FindAllStringSubmatch(string(doc), -1) {
		query[m[1]] = m[2]
	}
	query["metadataParam"] = "metadata[]"
	want := map[string][]string{leaveRoute: {"node"}} // which one node says to another
	path, op := "", ""
	line := regexp.MustCompile(`^  (/\S*):$|^    (get|put|post|patch|delete):$|^        - (?:\{name: (\w+), in: query|\$ref: "#/components/parameters/(\w+)")`)
	for text := range strings.SplitSeq(string(doc), "\n") {
		m := line.FindStringSubmatch(text)
		switch {
		case m == nil:
		case m[1] != "":
			path = "/v1" + strings.ReplaceAll(m[1], "{job_name}", "{job}")
			if m[1] == "/health" || m[1] == "/metrics" || m[1] == "/debug/vars" {
				path = m[1]
			}
		case m[2] != "":
			op = strings.ToUpper(m[2]) + " " + path
		case m[3]+query[m[4]] != "":
			want[op] = append(want[op], m[3]+query[m[4]])
		}
	}
	for _, route := range (&api{}).routes() {
		op := route.pattern
		if got := strings.Fields(route.params); op != "GET /v1" && !sameSet(got, want[op]) {
			t.Errorf("%s reads %q, the document has %q", op, got, want[op])
		}
	}
}

func sameSet(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// TestAPI_Capabilities holds the route table against the list of who may what,
// which is kept apart so that a change of one is looked at twice.
func TestAPI_Capabilities(t *testing.T) {
	var rows strings.Builder
	for _, r := range (&api{}).routes() {
		known := append(slices.Clone(capabilities), mayStoreJob, mayListJobs, anyToken, noToken)
		if !slices.Contains(known, r.capability) {
			t.Errorf("%s: capability %q, want one of %v", r.pattern, r.capability, known)
		}
		fmt.Fprintf(&rows, "%-7s%s\n", r.capability, r.pattern)
	}
	golden(t, "acl/routes", rows.String())
}

// tickSums is what listTicks answers.
type tickSums struct {
	Due, Ran, Late, Skipped, Missed int64
	Ticks                           []struct {
		Due     time.Time
		Until   time.Time
		Count   int64
		Outcome string
	}
}

// TestAPI_Ticks holds that every tick that falls due has exactly one outcome,
// through an overlap and an outage.
func TestAPI_Ticks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := newTestServer(t, dir, 1)
		if w := s.do("POST", "/v1/jobs", `{"name":"a","schedule":"@every 1s","concurrency":"forbid"}`); w.Code != http.StatusCreated {
			t.Fatal(w.Body)
		}
		began := time.Now()
		for i := range 30 {
			wait(time.Second)
			if i != 10 { // this one takes two seconds
				s.finish(outcomeSuccess)
			}
		}
		s.stop()
		wait(75 * time.Second)
		s = newTestServer(t, dir, 2)
		for range 30 {
			wait(time.Second)
			s.finish(outcomeSuccess)
		}
		var got tickSums
		if err := json.Unmarshal(s.do("GET", "/v1/jobs/a/ticks", "").Body.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		want := time.Now().Unix() - began.Unix()
		if sum := got.Ran + got.Late + got.Skipped + got.Missed; got.Due != sum || got.Due != want {
			t.Errorf("due %d, of which ran %d, late %d, skipped %d, missed %d; want %d in all", got.Due, got.Ran, got.Late, got.Skipped, got.Missed, want)
		}
		if got.Ran == 0 || got.Late != 1 || got.Skipped == 0 || got.Missed == 0 {
			t.Errorf("ran %d, late %d, skipped %d, missed %d; want some of each, and one late", got.Ran, got.Late, got.Skipped, got.Missed)
		}
		end := time.Now()
		for _, tick := range got.Ticks {
			if tick.Until.IsZero() {
				tick.Until, tick.Count = tick.Due, 1
			}
			if !tick.Until.Before(end) || tick.Until.Sub(tick.Due) != time.Duration(tick.Count-1)*time.Second {
				t.Errorf("%+v does not lie right before %s", tick, end)
			}
			end = tick.Due
		}
	})
}

// TestAPI_RestoreBrokenOff holds that a restore which is broken off leaves
// nothing: nothing that is seen, and in time no rows either.
func TestAPI_RestoreBrokenOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := newTestServer(t, dir, 1)
		file := "["
		for i := range 2 * sliceRows {
			file += fmt.Sprintf(`{"name":"job-%d","schedule":"@every 1s"},`, i)
		}
		r := s.parseRequest("POST /v1/restore\nContent-Type: multipart/form-data; boundary=XX\n\n--XX\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\n\n" + file + "\n--XX--\n")
		w := httptest.NewRecorder()
		s.handler.ServeHTTP(w, r)
		if w.Code != http.StatusBadRequest {
			t.Fatal(w.Code, w.Body)
		}
		if restore, err := s.api.store.stagedRestore(); err != nil || restore == 0 {
			t.Fatal("nothing was staged", err)
		}
		s.stop() // as a crash in the middle would
		s = newTestServer(t, dir, 2)
		wait(time.Minute)
		if w := s.do("GET", "/v1/jobs", ""); w.Header().Get("X-Total-Count") != "0" {
			t.Error("jobs of a restore that was broken off are visible")
		}
		wait(stagedKept)
		if restore, err := s.api.store.stagedRestore(); err != nil || restore != 0 {
			t.Error("rows of a restore that was broken off are left", restore, err)
		}
	})
}

// slowAnswer is an answer of which nothing is read until its client reads.
type slowAnswer struct {
	*httptest.ResponseRecorder
	reads chan struct{}
}

func (a *slowAnswer) Write(p []byte) (int, error) {
	<-a.reads
	return a.ResponseRecorder.Write(p)
}

// TestAPI_RestoreSlow: a client that does not read what a restore answers keeps
// nothing from those who read jobs.
func TestAPI_RestoreSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, t.TempDir(), 1)
		file := `{"name":"job-0","schedule":"@hourly"}`
		for i := range sliceRows {
			file += fmt.Sprintf(`,{"name":"job-%d","schedule":"@hourly"}`, i+1)
		}
		r := s.parseRequest("POST /v1/restore\nContent-Type: multipart/form-data; boundary=XX\n\n--XX\nContent-Disposition: form-data; name=\"file\"\n\n[" + file + "]\n--XX--\n")
		w := &slowAnswer{httptest.NewRecorder(), make(chan struct{})}
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.handler.ServeHTTP(w, r)
		}()
		wait(time.Second)
		if n := s.api.store.clients.pool.Stats().InUse; w.Code != http.StatusOK || n != 0 {
			t.Errorf("%d: %d connections are held for a client that does not read", w.Code, n)
		}
		close(w.reads)
		<-done
		var lines []string
		if err := json.Unmarshal(w.Body.Bytes(), &lines); err != nil || len(lines) != sliceRows+1 || lines[sliceRows] != fmt.Sprint("success create job-", sliceRows) {
			t.Errorf("answered %d lines, %v", len(lines), err)
		}
	})
}

// TestAPI_RestoreFired: a job whose last tick lies ahead of the clock, as it
// does when the clock was set back, is restored and goes on behind that tick.
func TestAPI_RestoreFired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, t.TempDir(), 1)
		fired := time.Now().Add(10 * time.Minute)
		res, err := s.propose(t.Context(), &command{Put: []jobPut{{Job: job{Name: "a", Schedule: "@hourly"}, Next: fired.UnixNano()}}})
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.propose(t.Context(), &command{Now: fired.UnixNano(), Consume: []decision{
			{Job: res.Jobs[0], Rev: int64(res.Index), Due: fired.UnixNano(), Next: fired.Add(time.Hour).UnixNano(), Outcome: outcomeSkipped, Reason: "test"}}})
		if err != nil {
			t.Fatal(err)
		}
		w := httptest.NewRecorder()
		s.handler.ServeHTTP(w, s.parseRequest("POST /v1/restore\nContent-Type: multipart/form-data; boundary=XX\n\n--XX\nContent-Disposition: form-data; name=\"file\"\n\n"+
			`[{"name":"new","schedule":"@every 1m"},{"name":"a","schedule":"@every 1m"}]`+"\n--XX--\n"))
		if w.Code != http.StatusOK {
			t.Fatal(w.Code, w.Body)
		}
		wait(15 * time.Minute)
		var got struct{ Ticks []struct{ Due time.Time } }
		if err := json.Unmarshal(s.do("GET", "/v1/jobs/a/ticks", "").Body.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		if n := len(got.Ticks); n < 3 || !got.Ticks[n-1].Due.Equal(fired) || got.Ticks[n-2].Due.Sub(fired) > time.Minute {
			t.Errorf("ticks %v, want one a minute behind %s", got.Ticks, fired)
		}
	})
}

// TestAPI_KeysApart: what differs is kept apart, however it is written: filters of
// lists, and the key of a request from that of the run that belongs to another.
func TestAPI_KeysApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, t.TempDir(), 1)
		s.do("POST", "/v1/jobs", `{"name":"a","schedule":"@manually","metadata":{"team":"x y"}}`)
		s.do("POST", "/v1/jobs", `{"name":"b","schedule":"@manually","metadata":{"team x":"y"}}`)
		for query, want := range map[string]string{"metadata[team]=x+y": `"name":"a"`, "metadata[team+x]=y": `"name":"b"`} {
			res := s.do("GET", "/v1/jobs?"+query, "")
			if total := res.Header().Get("X-Total-Count"); total != "1" || !strings.Contains(res.Body.String(), want) {
				t.Errorf("%s: %s jobs, %s, want %s", query, total, res.Body, want)
			}
		}
		keyed := func(key, target, name string) string {
			res, r := httptest.NewRecorder(), httptest.NewRequest("POST", target, strings.NewReader(`{"name":"`+name+`","schedule":"@manually"}`))
			r.Host = "localhost"
			r.Header.Set("Idempotency-Key", key)
			s.handler.ServeHTTP(res, r)
			return fmt.Sprint(res.Code, " ", res.Body)
		}
		keyed("k", "/v1/jobs?runoncreate=true", "run")
		if got := keyed("k run", "/v1/jobs", "other"); !strings.Contains(got, `"name":"other"`) || s.do("GET", "/v1/jobs/other", "").Code != http.StatusOK {
			t.Errorf("a job with the key %q is answered %s", "k run", got)
		}
	})
}

// TestAPI_Rev: of two changes of the same rev that arrive at the same time exactly one is made, whatever they are, and
// what is not a change of the definition leaves the rev alone.
func TestAPI_Rev(t *testing.T) {
	s := newTestServer(t, t.TempDir(), 1)
	web := httptest.NewServer(s.handler)
	defer web.Close()
	send := func(method, path, rev, body string) (int, string) {
		r, err := http.NewRequest(method, web.URL+path, strings.NewReader(body))
		if err != nil {
			t.Error(err)
			return 0, ""
		}
		r.Header.Set("Belfry-Rev", rev)
		resp, err := web.Client().Do(r)
		if err != nil {
			t.Error(err)
			return 0, ""
		}
		defer resp.Body.Close()
		return resp.StatusCode, resp.Header.Get("Belfry-Rev")
	}
	doc := func(owner string) string {
		return `{"name":"a","schedule":"@manually","executor":"shell","executor_config":{"command":"true"},"owner":"` + owner + `"}`
	}
	_, rev := send("POST", "/v1/jobs", "0", doc("nobody"))
	edits := []func() (int, string){
		func() (int, string) { return send("PUT", "/v1/jobs/a", rev, doc("one")) },
		func() (int, string) { return send("PATCH", "/v1/jobs", rev, doc("two")) },
		func() (int, string) { return send("POST", "/v1/jobs/a/toggle", rev, "") },
	}
	for n := range 30 {
		var both [2]struct {
			code int
			rev  string
		}
		var sent sync.WaitGroup
		for i := range both {
			sent.Go(func() { both[i].code, both[i].rev = edits[(n+i)%len(edits)]() })
		}
		sent.Wait()
		if both[0].code > both[1].code {
			both[0], both[1] = both[1], both[0]
		}
		_, now := send("GET", "/v1/jobs/a", "", "")
		if both[0].code >= 300 || both[0].rev == rev || both[0].rev != now || both[1].code != http.StatusPreconditionFailed {
			t.Fatalf("two changes of rev %s: %v, and the job has %s then; want one done, with that, and one 412", rev, both, now)
		}
		rev = now
	}
	send("POST", "/v1/jobs/a?force", rev, "")
	s.finish(outcomeSuccess)
	send("DELETE", "/v1/jobs/a/executions", rev, "")
	if _, now := send("GET", "/v1/jobs/a", "", ""); now != rev {
		t.Errorf("after a run the rev is %s, want %s as before", now, rev)
	}
	if code, _ := send("DELETE", "/v1/jobs/a", rev, ""); code != http.StatusOK {
		t.Errorf("DELETE with the present rev: %d", code)
	}
	if code, _ := send("PUT", "/v1/jobs/a", rev, doc("one")); code != http.StatusPreconditionFailed {
		t.Errorf("PUT with the rev of a deleted job: %d, want 412", code)
	}
}

// TestAPI_CallerGone: what is committed when nobody waits for it any more counts
// all the same: the job falls due.
func TestAPI_CallerGone(t *testing.T) {
	const doc = `{"name":"a","schedule":"@every 10s","executor":"shell","executor_config":{"command":"true"}`
	for _, c := range []struct{ name, before, path, kind, body string }{
		{"Put", "", "/v1/jobs", "application/json", doc + "}"},
		{"Toggle", doc + `,"disabled":true}`, "/v1/jobs/a/toggle", "", ""},
		{"Restore", "", "/v1/restore", "multipart/form-data; boundary=b",
			"--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n[" + doc + "}]\r\n--b--\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newTestServer(t, t.TempDir(), 7)
				if c.before != "" {
					s.do("POST", "/v1/jobs", c.before)
				}
				s.api.scheduler.fake().onPropose = func(ctx context.Context, cmd *command) (applied, error) {
					if cmd.Put == nil && cmd.Restore == nil {
						return s.propose(ctx, cmd)
					}
					time.AfterFunc(2*writeTimeout, func() { s.propose(context.Background(), cmd) })
					<-ctx.Done()
					return applied{}, ctx.Err()
				}
				res, r := httptest.NewRecorder(), httptest.NewRequest("POST", c.path, strings.NewReader(c.body))
				r.Host = "localhost"
				r.Header.Set("Content-Type", c.kind)
				if s.handler.ServeHTTP(res, r); res.Code != http.StatusGatewayTimeout {
					t.Fatalf("a write that takes two minutes: %d, %s, want 504", res.Code, res.Body)
				}
				wait(2*writeTimeout + 30*time.Second)
				s.node.mu.Lock()
				defer s.node.mu.Unlock()
				if len(s.node.orders) == 0 {
					t.Errorf("no run of a job that is due each ten seconds: %s", s.do("GET", "/v1/jobs/a", "").Body)
				}
			})
		})
	}
}

// TestAPI_Paused holds that a pause outlives a restart.
func TestAPI_Paused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := newTestServer(t, dir, 1)
		s.do("POST", "/v1/pause", "")
		s.stop()
		s = newTestServer(t, dir, 2)
		if w := s.do("POST", "/v1/jobs", "{"); w.Code != http.StatusServiceUnavailable {
			t.Error(w.Code, w.Body)
		}
	})
}

// TestAPI_Follow holds that a followed output goes on as it comes and ends
// with the run.
func TestAPI_Follow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, t.TempDir(), 1)
		s.do("POST", "/v1/jobs", `{"name":"a","schedule":"@manually"}`)
		group := s.do("POST", "/v1/jobs/a", "").Header().Get("Belfry-Group")
		s.node.print("one")
		done := make(chan *httptest.ResponseRecorder)
		go func() { done <- s.do("GET", "/v1/jobs/a/executions/"+group+"-node1/output?follow", "") }()
		wait(time.Hour)
		s.node.print("two")
		s.finish(outcomeSuccess)
		if w := <-done; w.Body.String() != "one\ntwo\n" || !w.Flushed {
			t.Errorf("got %q, flushed %t", w.Body, w.Flushed)
		}
	})
}

// TestAPI_Lists holds that a list shows at once what an API call has changed,
// and within a second what a run has, in every order.
func TestAPI_Lists(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, t.TempDir(), 1)
		for i := range 5 {
			s.do("POST", "/v1/jobs", fmt.Sprintf(`{"name":"job-%d","schedule":"@manually","displayname":"%d"}`, i, 9-i))
		}
		names := func(query string) string {
			t.Helper()
			var list []struct{ Name string }
			if err := json.Unmarshal(s.do("GET", "/v1/jobs?"+query, "").Body.Bytes(), &list); err != nil {
				t.Fatal(err)
			}
			text := ""
			for _, j := range list {
				text += strings.TrimPrefix(j.Name, "job-")
			}
			return text
		}
		for field := range jobOrder {
			up, down := names("_sort="+field), names("_order=DESC&_sort="+field)
			if len(up) != 5 || len(down) != 5 || up[0] != down[4] {
				t.Errorf("sorted by %q: %s and %s", field, up, down)
			}
		}
		check := func(query, want string) {
			t.Helper()
			if got := names(query); got != want {
				t.Errorf("%s: got %s, want %s", query, got, want)
			}
		}
		check("_sort=displayname", "43210")
		s.do("POST", "/v1/jobs", `{"name":"job-4","schedule":"@manually","displayname":"99"}`)
		check("_sort=displayname", "32104")
		s.do("DELETE", "/v1/jobs/job-2", "")
		check("_sort=displayname", "3104")
		check("status=untriggered", "0134")
		s.do("POST", "/v1/jobs/job-1", "")
		s.finish(outcomeSuccess)
		wait(listAge)
		check("status=untriggered", "034")
		check("status=success", "1")
		s.do("DELETE", "/v1/jobs/job-1/executions", "")
		check("_sort=success_count", "0134")
	})
}

// TestAPI_ListsBound: however many kinds of lists are asked for, the server
// keeps so many statements and no more, and answers as before.
func TestAPI_ListsBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, t.TempDir(), 1)
		for i := range metadataMax + 1 {
			metadata := ""
			for k := range i {
				metadata += fmt.Sprintf(`,"k%d":"v"`, k)
			}
			s.do("POST", "/v1/jobs", fmt.Sprintf(`{"name":"job-%d","schedule":"@manually","metadata":{"all":"v"%s}}`, i, metadata))
		}
		s.do("POST", "/v1/jobs/job-1", "")
		s.finish(outcomeSuccess)
		filters := ""
		for i := range metadataMax + 1 {
			for field := range jobOrder {
				if w := s.do("GET", "/v1/jobs?_sort="+field+filters, ""); w.Header().Get("X-Total-Count") != strconv.Itoa(metadataMax+1-i) {
					t.Errorf("by %s, with %d keys: %d, %s jobs", field, i, w.Code, w.Header().Get("X-Total-Count"))
				}
			}
			filters += fmt.Sprintf("&metadata[k%d]=v", i)
		}
		if n := len(s.api.store.clients.prepared); n != readStmtsMax {
			t.Errorf("%d statements are kept, want %d", n, readStmtsMax)
		}
		if w := s.do("GET", "/v1/jobs/job-1/executions", ""); w.Header().Get("X-Total-Count") != "1" || !strings.Contains(w.Body.String(), `"success":true`) {
			t.Errorf("executions: %d %s", w.Code, w.Body)
		}
		if w := s.do("GET", "/v1/jobs?"+filters, ""); w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), "metadata[key]: ") {
			t.Errorf("%d keys of metadata: %d %s", metadataMax+1, w.Code, w.Body)
		}
		if w := s.do("POST", "/v1/restore?prune"+filters, "[]"); w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), "metadata[key]: ") {
			t.Errorf("a restore that prunes by %d keys of metadata: %d %s", metadataMax+1, w.Code, w.Body)
		}
	})
}

// TestAPI_Metrics holds the numbers against what was done.
func TestAPI_Metrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := newTestServer(t, dir, 1)
		s.api.metricsJobs = 2
		for _, doc := range []string{`{"name":"a","schedule":"@every 1m","concurrency":"forbid","max_silence":"26h"}`, `{"name":"b","schedule":"@manually"}`,
			`{"name":"elsewhere","schedule":"@every 1m","tags":{"role":"none"}}`, `{"name":"c","schedule":"@manually"}`} {
			s.do("POST", "/v1/jobs", doc)
		}
		wait(122 * time.Second)
		s.finish(outcomeSuccess)
		s.do("POST", "/v1/jobs/c/run", "")
		wait(time.Second)
		s.finish(outcomeFailed)
		s.do("POST", "/v1/jobs/c/run", "")
		wait(time.Second)
		text := s.do("GET", "/metrics", "").Body.String()
		for _, line := range []string{"belfry_jobs 4", "belfry_jobs_without_metrics 2", "belfry_leader 1", `belfry_ticks_total{outcome="ran"} 1`, `belfry_ticks_total{outcome="skipped"} 3`,
			`belfry_ticks_not_run_total{why="overlap"} 1`, `belfry_ticks_not_run_total{why="no_node"} 2`, `belfry_ticks_not_run_total{why="other"} 0`,
			`belfry_runs_total{outcome="failed"} 1`, "belfry_due_lag_seconds 0",
			`belfry_job_failing{job_name="c"} 1`, `belfry_job_failing{job_name="a"} 0`,
			`belfry_job_runs_total{job_name="a",outcome="success"} 1`, `belfry_job_runs_total{job_name="c",outcome="failed"} 1`,
			`belfry_job_ticks_total{job_name="a",outcome="ran"} 1`, `belfry_job_ticks_total{job_name="a",outcome="skipped"} 1`, `belfry_job_ticks_total{job_name="a",outcome="missed"} 0`,
			`belfry_job_last_duration_seconds{job_name="a"} 0`, `belfry_job_last_success_timestamp_seconds{job_name="a"} 9.466849235e+08`,
			`belfry_job_oldest_running_timestamp_seconds{job_name="c"} 9.466849245e+08`,
			`belfry_job_max_silence_seconds{job_name="a"} 93600`,
			`dkron_job_executions_succeeded_total{job_name="a"} 1`, `dkron_job_executions_failed_total{job_name="c"} 1`} {
			if !strings.Contains(text, "\n"+line+"\n") {
				t.Errorf("no line %q in\n%s", line, text)
			}
		}
		for _, word := range []string{`job_name="b"`, "max_runtime_seconds{", "last_success_timestamp_seconds{job_name=\"c\"}", "oldest_running_timestamp_seconds{job_name=\"a\"}"} {
			if strings.Contains(text, word) {
				t.Errorf("%s is in\n%s", word, text)
			}
		}
		form := regexp.MustCompile(`^(# (HELP|TYPE) \S+ .+|[a-z_]+(\{[a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*\})? \S+)$`)
		for line := range strings.Lines(text) {
			if !form.MatchString(strings.TrimSuffix(line, "\n")) {
				t.Errorf("%q is no line of Prometheus' format", line)
			}
		}
		var vars struct {
			Memstats struct{ Alloc uint64 }
			Belfry   map[string]float64
		}
		if err := json.Unmarshal(s.do("GET", "/debug/vars", "").Body.Bytes(), &vars); err != nil || vars.Memstats.Alloc == 0 || vars.Belfry[`belfry_job_failing{job_name="c"}`] != 1 {
			t.Errorf("/debug/vars: %v, %v", err, vars)
		}
	})
}

// FuzzQuery holds that no query of a list fails but with a 4xx.
func FuzzQuery(f *testing.F) {
	for _, q := range []string{"", "_sort=name&_order=DESC", "_start=-1", "_end=x", "metadata[a]=b&metadata[=&metadata[]=", "q=%zz", "status=untriggered&disabled=maybe", "_sort=next&_start=5&_end=2", "pretty", "days=0", "start=x&end=y", "output_size_limit=-1", "schedule=@every+1s&count=1e9"} {
		f.Add(q)
	}
	st := newStore(f)
	fill(f, st, 10)
	sched := newScheduler(schedulerConfig{Timezone: "UTC"}, st, slog.New(slog.DiscardHandler))
	handler := (&api{store: st, scheduler: sched, log: slog.New(slog.DiscardHandler)}).handler()
	f.Fuzz(func(t *testing.T, query string) {
		for _, path := range []string{"/v1/jobs", "/v1/jobs/job-000001/executions", "/v1/jobs/job-000001/ticks", "/v1/stats", "/v1/schedule"} {
			r := httptest.NewRequest("GET", path, nil)
			r.Host, r.URL.RawQuery = "localhost", query
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			if w.Code >= 500 {
				t.Errorf("%s?%s: %d %s", path, query, w.Code, w.Body)
			}
		}
	})
}

// FuzzDecodeJob holds that a job that was read is written and read again as it
// was, and that its check ends.
func FuzzDecodeJob(f *testing.F) {
	for _, doc := range []string{`{}`, `null`, `{"name":"a","schedule":"@every 1s","tags":{"role":"web:2"},"starts_at":"2030-01-01T00:00"}`, `{"name":"a","expires_at":"9999-01-01T00:00:00Z","processors":{"log":null}}`, `{"retries":-1}`, `{"name":"a"} x`, `{"starts_at":1}`, `{"name":"~","schedule":"~ ~ ~ ~ ~ ~"}`} {
		f.Add([]byte(doc))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		j, err := decodeJob(doc, job{})
		if err != nil {
			return
		}
		_ = j.validate("UTC", 0) // either is fine
		written, err := json.Marshal(j)
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeJob(written, job{})
		if err != nil {
			t.Fatalf("%s: %v", written, err)
		}
		if diff := cmp.Diff(j, again, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%q was written as %s:\n%s", doc, written, diff)
		}
	})
}

// FuzzUploadedJobs holds that the reader of a restore yields what a plain
// decoder of the whole file does, or an error.
func FuzzUploadedJobs(f *testing.F) {
	for _, file := range []string{"", "[]", "[{}]", `[{"name":"a"},{"name":"b","schedule":"@daily"}]`, "[1]", "[{", "[{}", "[{}] x", "null", `[null]`, `[{"name":1}]`, `[{},]`,
		"[]" + strings.Repeat(" ", 2*jobBytesMax) + "x"} {
		f.Add([]byte(file))
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		var got []job
		var failed error
		for j, err := range uploadedJobs(bytes.NewReader(file), func() {}) {
			if failed != nil {
				t.Fatal("a job follows an error")
			}
			if failed = err; err == nil {
				got = append(got, j)
			}
		}
		var want []job
		err := json.Unmarshal(file, &want)
		if failed == nil && (err != nil || len(got) != len(want)) {
			t.Errorf("%.40q: %d jobs, want %d and %v", file, len(got), len(want), err)
		}
	})
}

// newBenchAPI returns the API of a server that leads, with n jobs.
func newBenchAPI(b *testing.B, n int) http.Handler {
	s := newTestServer(b, b.TempDir(), 1)
	for i := 0; i < n; i += 1000 {
		var put []jobPut
		for j := i; j < min(n, i+1000); j++ {
			put = append(put, jobPut{Job: job{Name: fmt.Sprintf("job-%06d", j), Schedule: "0 0 0 1 1 *", DisplayName: fmt.Sprint(n - j), Metadata: map[string]string{"team": fmt.Sprint(j % 7)},
				Executor: "shell", ExecutorConfig: map[string]string{"command": "true"}}, Next: testStart + int64(j)})
		}
		if _, err := s.api.scheduler.propose(b.Context(), &command{Put: put}); err != nil {
			b.Fatal(err)
		}
	}
	return s.handler
}

// hit sends requests from several clients.
func hit(b *testing.B, handler http.Handler, request func(i int) *http.Request) {
	var n atomic.Int64
	b.ReportAllocs()
	b.SetParallelism(8)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r := request(int(n.Add(1)))
			r.Host = "localhost"
			w := httptest.NewRecorder()
			if handler.ServeHTTP(w, r); w.Code >= 300 {
				b.Error(w.Code, w.Body)
				return
			}
		}
	})
}

func BenchmarkAPI_list(b *testing.B) {
	handler := newBenchAPI(b, 100_000)
	for _, query := range []string{"_sort=name", "_sort=next", "_sort=displayname&_order=DESC", "metadata[team]=3"} {
		b.Run(query, func(b *testing.B) {
			hit(b, handler, func(i int) *http.Request {
				start := i * 7919 % 14_000
				return httptest.NewRequest("GET", fmt.Sprintf("/v1/jobs?%s&_start=%d&_end=%d", query, start, start+50), nil)
			})
		})
	}
}

func BenchmarkAPI_get(b *testing.B) {
	handler := newBenchAPI(b, 10_000)
	hit(b, handler, func(i int) *http.Request {
		return httptest.NewRequest("GET", fmt.Sprintf("/v1/jobs/job-%06d", i*7919%10_000), nil)
	})
}

func BenchmarkAPI_create(b *testing.B) {
	handler := newBenchAPI(b, 0)
	hit(b, handler, func(i int) *http.Request {
		return httptest.NewRequest("POST", "/v1/jobs", strings.NewReader(fmt.Sprintf(`{"name":"new-%d","schedule":"0 0 0 1 1 *","executor":"shell","executor_config":{"command":"true"}}`, i)))
	})
}

// BenchmarkAPI_executions lists 100 executions whose outputs are long, with
// the end of each.
func BenchmarkAPI_executions(b *testing.B) {
	s := newTestServer(b, b.TempDir(), 1)
	if w := s.do("POST", "/v1/jobs", `{"name":"a","schedule":"@manually"}`); w.Code != http.StatusCreated {
		b.Fatal(w.Body)
	}
	for range 100 {
		s.do("POST", "/v1/jobs/a", "")
		s.node.print(strings.Repeat("x", outputBytesMax))
		s.finish(outcomeSuccess)
	}
	b.ResetTimer()
	hit(b, s.handler, func(int) *http.Request {
		return httptest.NewRequest("GET", "/v1/jobs/a/executions?output_size_limit=200", nil)
	})
}

// TestAPI_Redirect: a redirect never leaves this server.
func TestAPI_Redirect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, t.TempDir(), 7)
		for _, target := range []string{"//elsewhere.example/../v1/jobs/", "//v1/jobs/", "/\\elsewhere.example/../v1/jobs/"} {
			w := s.do("GET", "http://localhost"+target, "")
			to, err := url.Parse(w.Header().Get("Location"))
			if err != nil || to.Host != "" || strings.HasPrefix(to.Path, "//") {
				t.Errorf("%s is answered %d and leads to %s, %v", target, w.Code, to, err)
			}
		}
	})
}

// TestAPI_ScheduleEnd: times that JSON does not know end a list of ticks.
func TestAPI_ScheduleEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, t.TempDir(), 7)
		for _, from := range []string{"9999-12-31T23:30:00Z", "0000-01-01T00:00:00%2B23:00"} {
			for _, schedule := range []string{"@every+1h", "@hourly"} {
				if w := s.do("GET", "/v1/schedule?count=100&schedule="+schedule+"&from="+from, ""); w.Code != http.StatusOK {
					t.Errorf("%s from %s: %d %s", schedule, from, w.Code, w.Body)
				}
			}
		}
	})
}

// TestAPI_KillDeleted: what a deleted job still runs can be killed.
func TestAPI_KillDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, t.TempDir(), 7)
		s.do("POST", "/v1/jobs", `{"name":"a","schedule":"@manually"}`)
		s.do("POST", "/v1/jobs/a/run", "")
		if w := s.do("DELETE", "/v1/jobs/a", ""); w.Code != http.StatusOK {
			t.Fatal(w.Code, w.Body)
		}
		s.do("POST", "/v1/jobs", `{"name":"a","schedule":"@manually"}`)
		var busy []executionView
		if err := json.Unmarshal(s.do("GET", "/v1/busy", "").Body.Bytes(), &busy); err != nil || len(busy) != 1 {
			t.Fatal(busy, err)
		}
		if w := s.do("POST", "/v1/jobs/a/executions/"+busy[0].ID+"/kill", ""); w.Code != http.StatusAccepted || len(s.node.killed) != 1 {
			t.Errorf("kill: %d %s, told to the node %v", w.Code, w.Body, s.node.killed)
		}
	})
}

// TestAPI_KeyOfAnother: an Idempotency-Key that was used for something else is
// refused: to its sender the old answer would say that the new thing was done.
func TestAPI_KeyOfAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, t.TempDir(), 7)
		send := func(method, target, body string) *httptest.ResponseRecorder {
			r := httptest.NewRequest(method, target, strings.NewReader(body))
			r.Host = "localhost"
			r.Header.Set("Idempotency-Key", "k")
			r.Header.Set("Content-Type", "multipart/form-data; boundary=x")
			w := httptest.NewRecorder()
			s.handler.ServeHTTP(w, r)
			return w
		}
		file := func(jobs string) string {
			return "--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n" + jobs + "\r\n--x--\r\n"
		}
		for _, c := range []struct{ method, target, body, other string }{
			{"POST", "/v1/jobs", `{"name":"a","schedule":"@hourly"}`, `{"name":"b","schedule":"@hourly"}`},
			{"PUT", "/v1/jobs/a", `{"name":"a","schedule":"@daily","tags":{}}`, `{"name":"a","schedule":"@weekly"}`},
			{"POST", "/v1/acl/policies/p", `{"Rules":"{}"}`, `{"Rules":"{\"path\":{}}"}`},
			{"POST", "/v1/restore", file(`[{"name":"r","schedule":"@hourly"}]`), file(`[{"name":"s","schedule":"@hourly"}]`)},
		} {
			first, again, other := send(c.method, c.target, c.body), send(c.method, c.target, c.body), send(c.method, c.target, c.other)
			if first.Code/100 != 2 || again.Code != first.Code || again.Body.String() != first.Body.String() || other.Code != http.StatusUnprocessableEntity {
				t.Errorf("%s %s: %d %s, again %d %s, another body %d %s, want it refused", c.method, c.target,
					first.Code, first.Body, again.Code, again.Body, other.Code, other.Body)
			}
		}
		if w := s.do("GET", "/v1/jobs", ""); w.Header().Get("X-Total-Count") != "2" {
			t.Errorf("jobs are %s", w.Body)
		}
		first, again := send("DELETE", "/v1/acl/policies/p", ""), send("DELETE", "/v1/acl/policies/p", "")
		if first.Code != http.StatusOK || again.Body.String() != first.Body.String() {
			t.Errorf("a policy is deleted: %d %s, again %d %s", first.Code, first.Body, again.Code, again.Body)
		}
	})
}

// TestAPI_RestoreIndex: the answer to a restore that was passed on says what
// the other server must have applied.
func TestAPI_RestoreIndex(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, t.TempDir(), 7)
		r := httptest.NewRequest("POST", "/v1/restore", strings.NewReader("--x\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n[{\"name\":\"r\",\"schedule\":\"@hourly\"}]\r\n--x--\r\n"))
		r.Host = "localhost"
		r.Header.Set("Content-Type", "multipart/form-data; boundary=x")
		r = r.WithContext(context.WithValue(r.Context(), forwardedKey{}, forwarded{Actor: "anonymous", Request: "r"}))
		w := httptest.NewRecorder()
		s.handler.ServeHTTP(w, r)
		if index, err := strconv.ParseUint(w.Header().Get(headerIndex), 10, 64); err != nil || index != s.last {
			t.Errorf("answered %d %s with index %q, want %d", w.Code, w.Body, w.Header().Get(headerIndex), s.last)
		}
	})
}

// TestAPI_BodyMax: no route reads more than it takes, and of a body that says how
// large it is not a byte.
func TestAPI_BodyMax(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, t.TempDir(), 7)
		for _, route := range s.api.routes() {
			method, path, _ := strings.Cut(strings.TrimSuffix(route.pattern, "{$}"), " ")
			if method == http.MethodGet {
				continue
			}
			for _, said := range []bool{true, false} {
				read := &countingReader{left: 300 << 20}
				r := httptest.NewRequest(method, patternName.ReplaceAllString(path, "other"), read)
				r.Host, r.ContentLength = "localhost", -1
				r.Header.Set("Content-Type", "multipart/form-data; boundary=x")
				if said {
					r.ContentLength = read.left
				}
				w := httptest.NewRecorder()
				s.handler.ServeHTTP(w, r)
				if said && (w.Code != http.StatusRequestEntityTooLarge || read.count > 0) || read.count > route.bodyMax()+1<<20 {
					t.Errorf("%s, length said %t: %d after %d bytes, want at most %d", route.pattern, said, w.Code, read.count, route.bodyMax())
				}
			}
		}
	})
}

// countingReader is a long body of spaces.
type countingReader struct{ left, count int64 }

func (r *countingReader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), r.left)
	for i := range p[:n] {
		p[i] = ' '
	}
	r.left, r.count = r.left-n, r.count+n
	return int(n), nil
}

// TestAPI_OneBackup: backups that are asked for at the same time do not fill
// the disk.
func TestAPI_OneBackup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, t.TempDir(), 7)
		s.mu.Lock()
		s.last++
		err := s.api.store.persist(nil, []entry{{Index: s.last, Term: 1, Kind: entryVoters, Data: encodeVoters([]server{{"node1", "id1"}})}})
		if err == nil {
			_, err = s.api.store.applyUpTo(s.last)
		}
		s.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		first, err := s.api.backup(&apiCall{Request: httptest.NewRequest("GET", "/v1/backup", nil)})
		if err != nil {
			t.Fatal(err)
		}
		if w := s.do("GET", "/v1/backup", ""); w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
			t.Errorf("a second backup: %d %s", w.Code, w.Header())
		}
		if err := first.serve(httptest.NewRecorder()); err != nil {
			t.Fatal(err)
		}
		if w := s.do("GET", "/v1/backup", ""); w.Code != http.StatusOK || w.Body.Len() == 0 {
			t.Errorf("a backup after that: %d, %d bytes", w.Code, w.Body.Len())
		}
	})
}

// TestAPI_Browsers: a page of another origin, or one whose name points here,
// changes and reads nothing unless the operator has named it.
func TestAPI_Browsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, t.TempDir(), 7)
		s.api.hosts, s.api.origins = []string{"belfry.example"}, []string{"https://ops.example"}
		s.handler = s.api.handler()
		for _, c := range []struct {
			name, method, host string
			header             map[string]string
			status             int
			reads              string // Access-Control-Allow-Origin
		}{
			{"Own", "POST", "localhost", nil, 200, ""},
			{"OwnPage", "POST", "localhost", map[string]string{"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}, 200, ""},
			{"AllowedHost", "POST", "belfry.example:8080", nil, 200, ""},
			{"NoHost", "GET", "", nil, 200, ""},
			{"Rebinding", "GET", "evil.example", nil, 421, ""},
			{"RebindingBelow", "GET", "evil.belfry.example", nil, 421, ""},
			{"Foreign", "POST", "localhost", map[string]string{"Origin": "https://evil.example"}, 403, ""},
			{"ForeignFetch", "POST", "localhost", map[string]string{"Sec-Fetch-Site": "cross-site"}, 403, ""},
			{"ForeignRead", "GET", "localhost", map[string]string{"Origin": "https://evil.example"}, 200, ""},
			{"Null", "POST", "localhost", map[string]string{"Origin": "null", "Sec-Fetch-Site": "cross-site"}, 403, ""},
			{"Trusted", "POST", "localhost", map[string]string{"Origin": "https://ops.example", "Sec-Fetch-Site": "cross-site"}, 200, "https://ops.example"},
			{"TrustedRead", "GET", "localhost", map[string]string{"Origin": "https://ops.example"}, 200, "https://ops.example"},
			{"TrustedOtherScheme", "POST", "localhost", map[string]string{"Origin": "http://ops.example"}, 403, ""},
			{"TrustedOtherHost", "POST", "evil.example", map[string]string{"Origin": "https://ops.example"}, 421, ""},
			{"Preflight", "OPTIONS", "localhost", map[string]string{"Origin": "https://ops.example", "Access-Control-Request-Method": "POST"}, 204, "https://ops.example"},
			{"ForeignPreflight", "OPTIONS", "localhost", map[string]string{"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}, 405, ""},
		} {
			r := httptest.NewRequest(c.method, "/v1/pause", nil)
			r.Host = c.host
			for k, v := range c.header {
				r.Header.Set(k, v)
			}
			w := httptest.NewRecorder()
			s.handler.ServeHTTP(w, r)
			if got := w.Header().Get("Access-Control-Allow-Origin"); w.Code != c.status || got != c.reads {
				t.Errorf("%s: %d, Access-Control-Allow-Origin %q, want %d, %q", c.name, w.Code, got, c.status, c.reads)
			}
		}
	})
}

// TestAPI_Agent: an agent says itself that it does not lead and whether it is healthy. All else is what a server answers,
// and a write that it forwards is done there, with what the client has said of it.
func TestAPI_Agent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, t.TempDir(), 7)
		server := http.StripPrefix("/api", s.handler)
		served := func(w http.ResponseWriter, r *http.Request) { // as the server's plane does
			from := forwarded{Actor: r.Header.Get(headerActor), Request: r.Header.Get(headerRequest)}
			r.Host = "localhost"
			server.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), forwardedKey{}, from)))
		}
		gone := func(http.ResponseWriter, *http.Request) { panic(io.ErrUnexpectedEOF) }
		const doc = `{"name":"a","schedule":"@manually"}`
		for _, c := range []struct {
			method, target, rev string
			leader              http.HandlerFunc // nil: none is known
			status              int
			text                string // in the body
		}{
			{"GET", "/v1/isleader", "", served, 404, `"I am a follower"`},
			{"GET", "/health", "", nil, 503, `{"problems":["no server that leads is known: this node is given nothing to run; see --retry-join, ` +
				`and whether the servers are up"],"status":"unhealthy","warnings":["clock"]}`},
			{"GET", "/health?live", "", nil, 200, `{"status":"alive"}`},
			{"GET", "/health?leader", "", served, 503, `{"status":"follower"}`},
			{"GET", "/v1/jobs", "", served, 200, "[]"},
			{"POST", "/v1/jobs", "", served, 201, `"name":"a"`},
			{"GET", "/v1/jobs/a", "", served, 200, `"name":"a"`},
			{"PUT", "/v1/jobs/a", "1", served, 412, errRev.Error()},
			{"PUT", "/v1/jobs/a", "2", served, 201, `"name":"a"`},
			{"GET", "/v1/jobs", "", nil, 503, "no server can be reached; see --retry-join"},
			{"GET", "/v1/jobs", "", gone, 504, errUnknown.Error() + ": unexpected EOF"},
		} {
			p := newTestPlane(t, "n1", nil, nil)
			p.setProblem("clock", "clock")
			followIn(p, c.leader)
			a := &api{node: "n1", log: slog.New(slog.DiscardHandler), plane: p}
			r := httptest.NewRequest(c.method, c.target, strings.NewReader(doc))
			r.Host = "localhost"
			r.Header.Set("Belfry-Rev", c.rev)
			w := httptest.NewRecorder()
			a.relayHandler().ServeHTTP(w, r)
			if w.Code != c.status || !strings.Contains(w.Body.String(), c.text) {
				t.Errorf("%s %s: %d %s, want %d %s", c.method, c.target, w.Code, w.Body, c.status, c.text)
			}
			if w.Code < 300 && c.leader != nil && w.Header().Get("X-Whom") != "node1" {
				t.Errorf("%s %s is answered by %q, want the server", c.method, c.target, w.Header().Get("X-Whom"))
			}
		}
		if w := s.do("GET", "/v1/jobs/a", ""); w.Code != 200 || w.Header().Get("Belfry-Rev") == "2" {
			t.Errorf("on the server the job is %d %s, rev %s", w.Code, w.Body, w.Header().Get("Belfry-Rev"))
		}
	})
}

// openAnswer is an answer that is read while it is written.
type openAnswer struct {
	lockedBuffer
	header http.Header
}

func (a *openAnswer) Header() http.Header { return a.header }
func (a *openAnswer) WriteHeader(int)     {}
func (a *openAnswer) Flush()              {}

// watching is a client of /v1/events.
type watching struct {
	answer openAnswer
	seen   int // bytes of it that were read
	leave  func()
	ended  chan struct{} // closed when the answer is whole
}

// watch begins to watch with a secret, "" for none.
func (s *testServer) watch(secret string) *watching {
	ctx, leave := context.WithCancel(s.t.Context())
	c := &watching{answer: openAnswer{header: http.Header{}}, leave: leave, ended: make(chan struct{})}
	r := httptest.NewRequest("GET", "/v1/events", nil).WithContext(ctx)
	r.Host = "localhost"
	r.Header.Set("X-Dkron-Token", secret)
	go func() {
		defer close(c.ended)
		s.handler.ServeHTTP(&c.answer, r)
	}()
	return c
}

// heard lets a window pass and returns what came.
func (c *watching) heard() string {
	wait(windowTime)
	return c.read()
}

// read returns what came since the last time, without the quotes of JSON.
func (c *watching) read() string {
	text := c.answer.String()[c.seen:]
	c.seen += len(text)
	return strings.TrimSpace(strings.NewReplacer(`"`, "", "\n", " ").Replace(text))
}

// gone reports whether the server has ended the answer.
func (c *watching) gone() bool {
	synctest.Wait()
	select {
	case <-c.ended:
		return true
	default:
		return false
	}
}

// TestWatch: whatever changes is told once, in order, whoever changed it.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, t.TempDir(), 7)
		c := s.watch("")
		defer c.leave()
		check := func(what, want string) {
			t.Helper()
			if got := c.heard(); got != want {
				t.Errorf("%s: heard %s\nwant %s", what, got, want)
			}
		}
		run := func(job string) string {
			return s.do("POST", "/v1/jobs/"+job, "").Header().Get("Belfry-Group") + "-node1"
		}
		check("enter", "{type:hello,node:node1,leader:node1}")
		s.do("POST", "/v1/jobs", `{"name":"a","schedule":"@manually"}`)
		check("create", "{type:job,job:a}")
		s.do("POST", "/v1/jobs", `{"name":"b","parent_job":"a"}`)
		check("a child", "{type:job,job:a} {type:job,job:b}")
		id := run("a")
		check("run", "{type:started,job:a,execution:"+id+",attempt:1}")
		s.finish(outcomeFailed)
		check("end", "{type:ended,job:a,execution:"+id+",outcome:failed,attempt:1,last:true}")
		id = run("a")
		s.do("POST", "/v1/jobs/a/executions/"+id+"/kill", "")
		s.finish(outcomeFailed)
		check("kill", "{type:started,job:a,execution:"+id+",attempt:1} {type:ended,job:a,execution:"+id+",outcome:killed,attempt:1,last:true}")
		id = run("a")
		s.finish(outcomeSuccess)
		wait(windowTime)
		child := strings.Split(c.heard(), "execution:")
		if len(child) != 4 || !strings.HasPrefix(child[2], id+",outcome:success,attempt:1,last:true} {type:started,job:b,") {
			t.Errorf("a job and its child: heard %q", child)
		}
		s.finish(outcomeSuccess)
		check("the child ends", "{type:ended,job:b,execution:"+strings.TrimSuffix(child[3], ",attempt:1}")+",outcome:success,attempt:1,last:true}")
		s.do("POST", "/v1/jobs/a/toggle", "")
		check("toggle", "{type:job,job:a}")
		s.do("POST", "/v1/jobs/a", "")   // it is disabled
		s.do("DELETE", "/v1/jobs/a", "") // it has a child
		check("what is refused", "")
		s.do("DELETE", "/v1/jobs/a/executions", "")
		check("its executions are deleted", "{type:job,job:a}")
		s.do("DELETE", "/v1/jobs/b", "")
		check("delete", "{type:job,job:b} {type:job,job:a}")
		s.do("POST", "/v1/pause", "")
		check("pause", "{type:paused,paused:true}")
		s.do("POST", "/v1/unpause", "")
		check("unpause", "{type:paused,paused:false}")
		s.do("POST", "/v1/jobs", `{"name":"tick","schedule":"@every 20s","concurrency":"forbid"}`)
		check("a schedule", "{type:job,job:tick}")
		wait(45 * time.Second)
		if got := strings.Join(regexp.MustCompile(`type:(started|job),job:tick`).FindAllString(c.heard(), -1), " "); got != "type:started,job:tick type:job,job:tick" {
			t.Errorf("a tick that ran and one that was skipped: heard %s", got)
		}
		r := s.parseRequest("POST /v1/restore\nContent-Type: multipart/form-data; boundary=XX\n\n--XX\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\n\n[{\"name\":\"r\",\"schedule\":\"@hourly\"}]\n--XX--\n")
		s.handler.ServeHTTP(httptest.NewRecorder(), r)
		check("a restore", "{type:reload}")
		s.do("DELETE", "/v1/jobs/tick", "")
		s.do("DELETE", "/v1/jobs/r", "")
		wait(pollTime)
		c.heard()
		s.follow(func(http.ResponseWriter, *http.Request) {})
		wait(pollTime)
		check("the cluster", "{type:leader,leader:leader} {type:members}")
		s.follow(nil)
		wait(pollTime)
		check("no leader", "{type:leader,leader:}")
		wait(alivePolls * pollTime)
		check("nothing happens", "{type:alive}")
	})
}

// TestWatch_Retry: events say which attempt it is and, when it ended, whether another follows; and a job that an attempt
// saved is not counted as failing, though its status is partially_failed as in Dkron.
func TestWatch_Retry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, t.TempDir(), 7)
		s.do("POST", "/v1/jobs", `{"name":"a","schedule":"@manually","retries":1}`)
		c := s.watch("")
		defer c.leave()
		c.heard()
		failing := func(want int) {
			t.Helper()
			wait(summaryAge)
			var sum struct{ Jobs map[string]int }
			if err := json.Unmarshal(s.do("GET", "/v1/summary", "").Body.Bytes(), &sum); err != nil || sum.Jobs["failing"] != want {
				t.Errorf("the summary has %v, %v, want %d failing", sum.Jobs, err, want)
			}
			if n := s.do("GET", "/v1/jobs?status=failing", "").Header().Get("X-Total-Count"); n != strconv.Itoa(want) {
				t.Errorf("the list has %s failing jobs, want %d", n, want)
			}
		}
		for _, attempts := range [][]string{{outcomeFailed, outcomeSuccess}, {outcomeFailed, outcomeFailed}, {outcomeSuccess}} {
			s.do("POST", "/v1/jobs/a/run", "")
			var want []string
			for i, outcome := range attempts {
				wait(2 * time.Second)
				s.finish(outcome)
				last, n := "", 0
				if i == len(attempts)-1 {
					last, n = ",last:true", map[string]int{outcomeFailed: 1}[outcome]
				}
				want = append(want, fmt.Sprintf("{type:started,job:a,attempt:%d}", i+1), fmt.Sprintf("{type:ended,job:a,outcome:%s,attempt:%d%s}", outcome, i+1, last))
				failing(n)
			}
			wait(windowTime)
			heard := regexp.MustCompile(`,execution:[\w-]+`).ReplaceAllString(strings.ReplaceAll(c.heard(), "{type:alive} ", ""), "")
			if heard != strings.Join(want, " ") {
				t.Errorf("heard %s\nwant  %s", heard, strings.Join(want, " "))
			}
			var row jobRow
			json.Unmarshal(s.do("GET", "/v1/jobs/a", "").Body.Bytes(), &row)
			if status := map[int]string{0: statusPartial}[len(want)-4]; attempts[len(attempts)-1] == outcomeSuccess && len(attempts) == 2 && row.Status != status {
				t.Errorf("the status is %q, want %q", row.Status, status)
			}
		}
	})
}

// TestWatch_Limited: a token for some jobs hears of those only, and none once
// it is gone.
func TestWatch_Limited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := newTestServer(t, filepath.Join(dir, "data"), 7)
		root := s.guarded(dir)
		s.mustAs(http.StatusAccepted, root, "POST", "/v1/acl/policies/runs", `{"Rules": "{\"path\": {\"/v1/jobs/mine-**\": {\"capabilities\": [\"read\", \"list\"]}}}"}`)
		s.mustAs(http.StatusAccepted, root, "POST", "/v1/acl/policies/counts", `{"Rules": "{\"path\": {\"/v1/jobs/mine-*\": {\"capabilities\": [\"read\"]}}}"}`)
		tokens := map[string]tokenView{}
		for _, p := range []string{"runs", "counts", "viewer"} {
			tokens[p] = s.made(root, "/v1/acl/tokens", `{"Name": "a", "Policies": ["`+p+`"]}`)
		}
		brief := s.made(root, "/v1/acl/tokens", `{"Name": "a", "Policies": ["viewer"], "ExpirationTTL": "20s"}`).SecretID
		clients := map[string]*watching{"brief": s.watch(brief)}
		for p, token := range tokens {
			clients[p] = s.watch(token.SecretID)
		}
		for p, want := range map[string]string{"runs": "{type:hello,node:node1,leader:}", "viewer": "{type:hello,node:node1,leader:node1}"} {
			if got := clients[p].heard(); got != want {
				t.Errorf("%s: heard %s, want %s", p, got, want)
			}
		}
		clients["counts"].heard()
		for _, name := range []string{"mine-a", "yours"} {
			s.mustAs(http.StatusCreated, root, "POST", "/v1/jobs", `{"name": "`+name+`", "schedule": "@manually"}`)
			s.mustAs(http.StatusAccepted, root, "POST", "/v1/jobs/"+name, "")
		}
		s.mustAs(http.StatusOK, root, "POST", "/v1/pause", "")
		wait(windowTime)
		number := regexp.MustCompile(`\d+-`)
		for p, want := range map[string]string{
			"runs":   "{type:job,job:mine-a} {type:started,job:mine-a,execution:N-node1,attempt:1}",
			"counts": "{type:job,job:mine-a} {type:job,job:mine-a}",
			"viewer": "{type:job,job:mine-a} {type:started,job:mine-a,execution:N-node1,attempt:1} {type:job,job:yours} {type:started,job:yours,execution:N-node1,attempt:1} {type:paused,paused:true}",
		} {
			if got := number.ReplaceAllString(clients[p].heard(), "N-"); got != want {
				t.Errorf("%s: heard %s\nwant %s", p, got, want)
			}
		}
		s.mustAs(http.StatusOK, root, "DELETE", "/v1/acl/tokens/"+tokens["runs"].AccessorID, "")
		s.mustAs(http.StatusOK, root, "DELETE", "/v1/acl/policies/counts", "")
		wait(5 * time.Second)
		for p, gone := range map[string]bool{"runs": true, "counts": true, "viewer": false, "brief": false} {
			if clients[p].gone() != gone {
				t.Errorf("%s: gone %t after a token and a policy were deleted", p, !gone)
			}
		}
		wait(20 * time.Second)
		if !clients["brief"].gone() {
			t.Error("a token that has expired still hears")
		}
		clients["viewer"].leave()
		wait(0)
	})
}

// pipes is a listener whose connections hold nothing that was not read.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if c, ok := <-p; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (p pipes) Close() error   { close(p); return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

// TestWatch_Slow: who does not read holds up nobody, and is told to read
// everything again when it does; who never does is cut off.
func TestWatch_Slow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, t.TempDir(), 7)
		listener := make(pipes)
		web := &http.Server{Handler: s.handler, ReadTimeout: readTimeout}
		go web.Serve(listener)
		conn, there := net.Pipe()
		listener <- there
		fmt.Fprint(conn, "GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
		lines := bufio.NewReader(conn)
		until := func(text string) {
			t.Helper()
			for line := ""; !strings.Contains(line, text); {
				var err error
				if line, err = lines.ReadString('\n'); err != nil {
					t.Fatalf("no line with %s: %v", text, err)
				}
			}
		}
		until("hello")
		for range 3 { // it may go on for longer than a request may take to come
			until("alive")
		}
		for i := range 2 * windowsKept {
			if w := s.do("POST", "/v1/jobs", fmt.Sprintf(`{"name":"a-%d","schedule":"@manually"}`, i)); w.Code != http.StatusCreated {
				t.Fatal(w.Code, w.Body)
			}
			wait(windowTime)
		}
		until("reload")
		s.do("POST", "/v1/jobs", `{"name":"after","schedule":"@manually"}`)
		until("after")
		wait(time.Hour) // of which it reads nothing
		if n := s.api.store.events.watchers.Load(); n != 0 {
			t.Errorf("%d clients still watch", n)
		}
		conn.Close()
		web.Close()
	})
}

// fillOutputs makes a job with n executions whose outputs are as long as they may
// be, of what JSON needs six bytes for.
func (s *testServer) fillOutputs(name string, n int) {
	s.t.Helper()
	s.do("POST", "/v1/jobs", fmt.Sprintf(`{"name":%q,"schedule":"@manually"}`, name))
	for range n {
		s.do("POST", "/v1/jobs/"+name, "")
		s.node.print(strings.Repeat("\x01", outputBytesMax-1))
		s.finish(outcomeSuccess)
	}
}

// heapWriter is a client who looks every 4 MiB how much memory is in use.
type heapWriter struct {
	header     http.Header
	size, most int
	looks      int
}

func (w *heapWriter) Header() http.Header { return w.header }
func (w *heapWriter) WriteHeader(int)     {}

func (w *heapWriter) Write(p []byte) (int, error) {
	if w.size += len(p); w.size >= w.looks*4<<20 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		w.most = max(w.most, int(m.HeapAlloc))
		w.looks++
	}
	return len(p), nil
}

// TestAPI_LongAnswer: however long an answer is, it takes no more memory than a
// part of it.
func TestAPI_LongAnswer(t *testing.T) {
	if testing.Short() {
		t.Skip("sends 110 MB")
	}
	synctest.Test(t, func(t *testing.T) {
		const most = 32 << 20
		s := newTestServer(t, t.TempDir(), 1)
		s.fillOutputs("a", 25)
		for i := range 70 {
			doc := fmt.Sprintf(`{"name":"b-%d","schedule":"@manually","displayname":%q}`, i, strings.Repeat("x", jobBytesMax-100))
			if w := s.do("POST", "/v1/jobs", doc); w.Code != http.StatusCreated {
				t.Fatal(w.Code, w.Body)
			}
		}
		for target, size := range map[string]int{"/v1/jobs/a/executions": 25 * 6 * (outputBytesMax - 1), "/v1/jobs": 70 * (jobBytesMax - 200), "/v1/jobs?_sort=next": 70 * (jobBytesMax - 200)} {
			s.api.store.docs.drop(nil, true)
			before, w := heapWriter{header: http.Header{}}, heapWriter{header: http.Header{}}
			before.Write(nil)
			r := httptest.NewRequest("GET", target, nil)
			r.Host = "localhost"
			if s.handler.ServeHTTP(&w, r); w.size < size || w.size < most || w.most-before.most > most+docsBytesMax {
				t.Errorf("%s: %d bytes, want %d, took %d bytes of memory, want %d", target, w.size, size, w.most-before.most, most+docsBytesMax)
			}
		}
		s.api.store.docs.drop(nil, true) // to compare them all at the end takes longer than the rest
	})
}

// TestAPI_NeverReads: who does not read a long answer is given up, as many as may
// be on their way keep nobody from a short one, and who reads slowly gets all.
func TestAPI_NeverReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, t.TempDir(), 1)
		s.fillOutputs("a", 2)
		listener := make(pipes)
		web := &http.Server{Handler: s.handler, ReadTimeout: readTimeout}
		go web.Serve(listener)
		const long = "/v1/jobs/a/executions"
		ask := func() net.Conn {
			conn, there := net.Pipe()
			listener <- there
			fmt.Fprint(conn, "GET "+long+" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
			return conn
		}
		for range longResponsesMax {
			defer ask().Close()
		}
		wait(time.Second)
		if w := s.do("GET", long, ""); w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
			t.Errorf("one long answer too many: %d, %v", w.Code, w.Header())
		}
		if w := s.do("GET", "/v1/jobs/a", ""); w.Code != http.StatusOK {
			t.Errorf("a short answer beside the long ones: %d %s", w.Code, w.Body)
		}
		wait(chunkTime)
		if n := s.api.long.all; n != 0 {
			t.Errorf("%d long answers are on their way to nobody", n)
		}
		slow := ask()
		defer slow.Close()
		size, began := 0, time.Now()
		for part := make([]byte, chunkBytes); ; {
			n, err := io.ReadFull(slow, part)
			if size += n; err != nil {
				break
			}
			wait(chunkTime * 2 / 3)
		}
		if want := s.do("GET", long, "").Body.Len(); size < want || time.Since(began) < 2*chunkTime {
			t.Errorf("who reads slowly got %d of %d bytes in %v", size, want, time.Since(began))
		}
		web.Close()
	})
}

// TestLongAnswers: one token leaves room for others.
func TestLongAnswers(t *testing.T) {
	var l longResponses
	for range longResponsesOfToken {
		if !l.enter("a") {
			t.Fatal("a token may not have as many as it may")
		}
	}
	if l.enter("a") || !l.enter("b") {
		t.Error("a token has more than it may, or another none")
	}
	l.leave("a")
	for n := longResponsesOfToken; n < longResponsesMax; n++ {
		if !l.enter("") {
			t.Errorf("refused after %d", n)
		}
	}
	if l.enter("c") {
		t.Error("there are more than there may be")
	}
}

// TestAPI_Readers: whatever clients read, the leader reads beside them.
func TestAPI_Readers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, t.TempDir(), 1)
		for range readerConns {
			conn, err := s.api.store.clients.pool.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
		}
		if w := s.do("POST", "/v1/jobs", `{"name":"a","schedule":"@every 1s","concurrency":"forbid"}`); w.Code != http.StatusCreated {
			t.Fatal(w.Code, w.Body)
		}
		wait(10 * time.Second)
		s.finish(outcomeSuccess)
		wait(time.Second)
		if n := len(s.node.orders); n != 1 {
			t.Errorf("%d runs after one has ended, want the next", n)
		}
		if entries, err := s.api.store.entries(1, math.MaxInt64); err != nil || len(entries) < 3 {
			t.Errorf("replication reads %d entries, %v", len(entries), err)
		}
	})
}

// forwarding has a client's connections, whose requests an agent forwards to a
// leader, which is only a handler.
type forwarding struct{ near pipes }

// forwardingTo runs test in a bubble.
func forwardingTo(t *testing.T, leader http.HandlerFunc, test func(*testing.T, *forwarding)) {
	synctest.Test(t, func(t *testing.T) {
		log := slog.New(slog.DiscardHandler)
		far, near := make(pipes), make(pipes)
		there := network{
			listen: func(string, string) (net.Listener, error) { return make(pipes), nil },
			dial: func(context.Context, string, string) (net.Conn, error) {
				ours, theirs := net.Pipe()
				far <- theirs
				return ours, nil
			},
		}
		p, err := newPlane(planeConfig{record: record{Name: "agent", ID: "id", Addr: "agent:1"}, Key: testKey, BeatTime: time.Hour, network: there}, nil, log)
		if err != nil {
			t.Fatal(err)
		}
		p.known["id-leader"] = &contact{record: record{Name: "leader", ID: "id-leader", Addr: "leader:1", Server: true, Leads: true, Status: memberAlive}, lastSeen: time.Now()}
		web := &http.Server{Handler: leader}
		go web.Serve(tls.NewListener(far, p.tls))
		a := &api{node: "agent", log: log, plane: p, stopping: make(chan struct{})}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- webServer(near, a.limited(restoreBytesMax, a.relayHandler()), log)(ctx) }()
		test(t, &forwarding{near})
		synctest.Wait()
		if n := a.uploads.incomplete.Len(); n != 0 {
			t.Errorf("%d uploads are waited for, though their requests have ended", n)
		}
		p.streams.CloseIdleConnections()
		web.Close()
		stop()
		<-ended
		wait(time.Minute)
	})
}

// begin sends the head of a request, and nothing of a body with that many bytes.
func (f *forwarding) begin(method string, bytes int) net.Conn {
	conn, theirs := net.Pipe()
	f.near <- theirs
	fmt.Fprintf(conn, "%s /v1/restore HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n", method, bytes)
	return conn
}

// response returns the status line and the body of what is sent until the connection is closed.
func (f *forwarding) response(conn net.Conn) string {
	defer conn.Close()
	answer, err := io.ReadAll(conn)
	if err != nil {
		return err.Error()
	}
	head, body, _ := strings.Cut(string(answer), "\r\n\r\n")
	status, _, _ := strings.Cut(head, "\r\n")
	return status + " " + body
}

// TestAPI_SlowForward: a body that is passed on may take as long as it goes on to
// come, and the answer to it as long as it takes.
func TestAPI_SlowForward(t *testing.T) {
	forwardingTo(t, func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			http.Error(w, "the body breaks off", http.StatusBadRequest)
			return
		}
		select {
		case <-time.After(3 * readTimeout / 2):
		case <-r.Context().Done():
		}
		fmt.Fprint(w, n)
	}, func(t *testing.T, f *forwarding) {
		ask := func(method string, parts int, chunk string) string {
			conn := f.begin(method, parts*len(chunk))
			gone := make(chan struct{})
			defer close(gone)
			go func() {
				for range parts {
					select {
					case <-time.After(time.Second):
					case <-gone:
					}
					if _, err := io.WriteString(conn, chunk); err != nil {
						return
					}
				}
			}()
			return f.response(conn)
		}
		if got, want := ask("POST", 42, strings.Repeat("x", 50_000)), "HTTP/1.1 200 OK 2100000"; got != want {
			t.Errorf("2.1 MB in 42 s: %q, want %q", got, want)
		}
		if got, want := ask("GET", 0, ""), "HTTP/1.1 200 OK 0"; got != want {
			t.Errorf("no body: %q, want %q", got, want)
		}
		if got := ask("POST", 60, "x"); !strings.Contains(got, "400") && !strings.Contains(got, "504") {
			t.Errorf("a byte each second: %q, want 400 or 504", got)
		}
	})
}

// TestAPI_Withheld: clients that withhold bodies keep nobody from being forwarded, neither requests that they begin
// later nor an upload that makes progress.
func TestAPI_Withheld(t *testing.T) {
	forwardingTo(t, func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		fmt.Fprint(w, n)
	}, func(t *testing.T, f *forwarding) {
		const requests = planeStreamsPerNode + 10
		const part, parts = 2 * progressBytes, 2 + requests/100
		slow := f.begin("POST", parts*part)
		var withheld []net.Conn
		for i := range requests {
			if i%100 == 0 {
				io.WriteString(slow, strings.Repeat("x", part))
			}
			withheld = append(withheld, f.begin("POST", 100))
			synctest.Wait()
		}
		began := time.Now()
		for _, method := range []string{"GET", "POST"} {
			if got, want := f.response(f.begin(method, 0)), "HTTP/1.1 200 OK 0"; got != want {
				t.Errorf("%s: %q, want %q", method, got, want)
			}
		}
		if got, want := f.response(withheld[0]), "HTTP/1.1 504"; !strings.HasPrefix(got, want) {
			t.Errorf("the first without a body: %q, want %s", got, want)
		}
		io.WriteString(slow, strings.Repeat("x", part))
		if got, want := f.response(slow), fmt.Sprint("HTTP/1.1 200 OK ", parts*part); got != want {
			t.Errorf("an upload in between: %q, want %q", got, want)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %v", took)
		}
		for _, conn := range withheld {
			conn.Close()
		}
	})
}

// TestAPI_EarlyResponse: a client whose request is refused before its body gets the whole response, before it sends that.
func TestAPI_EarlyResponse(t *testing.T) {
	forwardingTo(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		w.WriteHeader(http.StatusUnauthorized)
		io.WriteString(w, "no ")
		http.NewResponseController(w).Flush()
		<-time.After(time.Second)
		io.WriteString(w, "token")
	}, func(t *testing.T, f *forwarding) {
		conn, theirs := net.Pipe()
		defer conn.Close()
		f.near <- theirs
		io.WriteString(conn, "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n")
		began := time.Now()
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		io.Copy(io.Discard, conn) // until the server closes it
		if took := time.Since(began); err != nil || resp.StatusCode != http.StatusUnauthorized || string(got) != "no token" || took > 2*time.Second {
			t.Errorf("%d %q, %v after %v", resp.StatusCode, got, err, took)
		}
	})
}

// TestAPI_RefusedHalfRead: what is left of the body of a request that was refused is not the next request.
func TestAPI_RefusedHalfRead(t *testing.T) {
	forwardingTo(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		w.Header().Set(headerRefused, refusalCode(errNotLeader))
		w.WriteHeader(http.StatusConflict)
	}, func(t *testing.T, f *forwarding) {
		conn, theirs := net.Pipe()
		defer conn.Close()
		f.near <- theirs
		io.WriteString(conn, "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhalf")
		answers := bufio.NewReader(conn)
		resp, err := http.ReadResponse(answers, nil)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		rest, err := io.ReadAll(answers)
		if resp.StatusCode != http.StatusServiceUnavailable || !resp.Close || len(rest) != 0 {
			t.Errorf("%v, then %q, %v; want 503 and the connection closed", resp, rest, err)
		}
	})
}

// TestAPI_ForwardedWithoutBody: a write without a body waits for none, so its connection is kept.
func TestAPI_ForwardedWithoutBody(t *testing.T) {
	forwardingTo(t, func(w http.ResponseWriter, r *http.Request) {}, func(t *testing.T, f *forwarding) {
		conn, theirs := net.Pipe()
		defer conn.Close()
		f.near <- theirs
		io.WriteString(conn, "POST /v1/jobs/a/run HTTP/1.1\r\nHost: localhost\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || resp.Close {
			t.Errorf("%v, %v; want a connection that is kept", resp, err)
		}
	})
}

// TestWatch_Burst: what is too much to be told one by one is told in a word,
// and not more often than it can be looked at.
func TestWatch_Burst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, t.TempDir(), 7)
		var put []jobPut
		for i := range 2 * eventsMax {
			put = append(put, jobPut{Job: job{Name: fmt.Sprintf("a-%d", i), Schedule: "@manually"}, Next: never})
		}
		change := func() {
			t.Helper()
			res, err := s.api.scheduler.propose(t.Context(), &command{Put: slices.Clone(put)})
			if err != nil {
				t.Fatal(err)
			}
			for i, id := range res.Jobs {
				put[i].Base, put[i].Keep = jobVersion{id, int64(res.Index)}, true
			}
		}
		change()
		c := s.watch("")
		c.heard()
		const seconds = 5
		for range seconds * time.Second / windowTime {
			change()
			wait(windowTime)
		}
		c.leave()
		<-c.ended
		if got := c.read(); strings.Count(got, "{type:reload}") < seconds-1 || strings.Count(got, "{") > seconds+2 {
			t.Errorf("heard %s", got)
		}
	})
}

// TestWatch_Many: there is an end to how many may watch, and all end when the
// server does.
func TestWatch_Many(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, t.TempDir(), 7)
		stopping := make(chan struct{})
		s.api.stopping = stopping
		var clients []*watching
		for range watchersMax {
			clients = append(clients, s.watch(""))
		}
		wait(0)
		s.do("POST", "/v1/jobs", `{"name":"a","schedule":"@manually"}`)
		wait(windowTime)
		for _, c := range clients {
			if got := c.read(); !strings.HasSuffix(got, "{type:job,job:a}") {
				t.Fatalf("heard %s", got)
			}
		}
		if w := s.do("GET", "/v1/events", ""); w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
			t.Errorf("one more is answered %d %s", w.Code, w.Body)
		}
		clients[0].leave()
		wait(0)
		clients[0] = s.watch("")
		if got := clients[0].heard(); got != "{type:hello,node:node1,leader:node1}" {
			t.Errorf("in place of one that left: heard %s", got)
		}
		close(stopping)
		for _, c := range clients {
			if !c.gone() {
				t.Fatal("a client is not let go by a server that stops")
			}
		}
	})
}

// TestAPI_OutputBytes holds that an output is cut as bytes, whatever they are: what is not UTF-8 is U+FFFD in JSON, and
// itself in /output.
func TestAPI_OutputBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, t.TempDir(), 1)
		s.do("POST", "/v1/jobs", `{"name":"a","schedule":"@manually"}`)
		for _, c := range []struct{ name, printed, limit, listed, shown string }{
			{"NUL", "a\x00b\n", "100", "a\x00b\n", "a\x00b\n"},
			{"NULInFront", strings.Repeat("x", 5000) + "\x00b\n", "4500", strings.Repeat("x", 4497) + "\x00b\n", strings.Repeat("x", 5000) + "\x00b\n"},
			{"Euros", strings.Repeat("€", 5000), "5000", strings.Repeat("€", 1666), strings.Repeat("€", 5000)},
			{"Latin1", "caf\xe9\n", "100", "caf\ufffd\n", "caf\ufffd\n"},
			{"CutInRune", "é!", "2", "!", "é!"},
		} {
			group := s.do("POST", "/v1/jobs/a", "").Header().Get("Belfry-Group")
			s.node.printedBy[s.node.orders[0].Execution].Write([]byte(c.printed))
			s.finish(outcomeSuccess)
			path := "/v1/jobs/a/executions/" + group + "-node1"
			if got := s.do("GET", path+"/output", "").Body.String(); got != c.printed {
				t.Errorf("%s: /output is %d bytes %.40q, want %d", c.name, len(got), got, len(c.printed))
			}
			var one executionView
			var list []executionView
			if err := json.Unmarshal(s.do("GET", path, "").Body.Bytes(), &one); err != nil || one.Output != c.shown {
				t.Errorf("%s: %d bytes %.40q, %v; want %d", c.name, len(one.Output), one.Output, err, len(c.shown))
			}
			if err := json.Unmarshal(s.do("GET", "/v1/jobs/a/executions?_end=1&output_size_limit="+c.limit, "").Body.Bytes(), &list); err != nil || list[0].Output != c.listed {
				t.Errorf("%s: listed are %d bytes %.40q, %v; want %d", c.name, len(list[0].Output), list[0].Output, err, len(c.listed))
			}
		}
	})
}

// TestAPI_OutputOfDeadNode holds that nobody is told of an internal error because a node is down.
func TestAPI_OutputOfDeadNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, t.TempDir(), 1)
		s.do("POST", "/v1/jobs", `{"name":"a","schedule":"@manually"}`)
		group := s.do("POST", "/v1/jobs/a", "").Header().Get("Belfry-Group")
		for _, err := range []error{fmt.Errorf("%w: node1: %w", errRefused, errNoAddress), &url.Error{Op: "Get", URL: "https://192.0.2.1/output", Err: io.EOF}} {
			s.node.broken = err
			w := s.do("GET", "/v1/jobs/a/executions/"+group+"-node1/output", "")
			if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "node1") || strings.Contains(w.Body.String(), "192.0.2.1") {
				t.Errorf("%v: got %d %s", err, w.Code, w.Body)
			}
		}
	})
}

// TestAPI_UTF8 holds that a body which is not UTF-8 changes nothing, and that the mark some editors put in front does not
// matter.
func TestAPI_UTF8(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, t.TempDir(), 1)
		restore := func(file string) int {
			w := httptest.NewRecorder()
			s.handler.ServeHTTP(w, s.parseRequest("POST /v1/restore\nContent-Type: multipart/form-data; boundary=XX\n\n--XX\nContent-Disposition: form-data; name=\"file\"\n\n"+file+"\n--XX--\n"))
			return w.Code
		}
		const job = `{"name":"%s","schedule":"@manually","executor_config":{"command":"echo caf%s"}}`
		for _, c := range []struct {
			prefix, e string
			want      int
		}{{"", "\xe9", 400}, {"", "é", 201}, {"\ufeff", "é", 201}, {"\xff", "é", 400}, {"\ufeff\ufeff", "é", 400}} {
			if w := s.do("POST", "/v1/jobs", c.prefix+fmt.Sprintf(job, "a", c.e)); w.Code != c.want {
				t.Errorf("%q, %q: got %d %s, want %d", c.prefix, c.e, w.Code, w.Body, c.want)
			}
			want := map[int]int{201: 200, 400: 400}[c.want]
			if code := restore(c.prefix + "[" + fmt.Sprintf(job, "b", c.e) + "]"); code != want {
				t.Errorf("a file with %q, %q: got %d, want %d", c.prefix, c.e, code, want)
			}
		}
	})
}

// executionDocs returns the executions that a list answers, or one.
func (s *testServer) executionDocs(target string) (list []map[string]any) {
	s.t.Helper()
	doc := bytes.TrimSpace(s.do("GET", target, "").Body.Bytes())
	if len(doc) > 0 && doc[0] == '{' {
		doc = slices.Concat([]byte("["), doc, []byte("]"))
	}
	if err := json.Unmarshal(doc, &list); err != nil {
		s.t.Fatalf("%s: %v", target, err)
	}
	return list
}

// TestAPI_FailureEnds holds that a list shows why a run failed together with the end of what it printed, however long
// that is.
func TestAPI_FailureEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, t.TempDir(), 1)
		s.do("POST", "/v1/jobs", `{"name":"a","schedule":"@manually"}`)
		for _, lines := range []int{0, 3, 300, 30_000} {
			group := s.do("POST", "/v1/jobs/a", "").Header().Get("Belfry-Group")
			path := "/v1/jobs/a/executions/" + group + "-node1"
			var text strings.Builder
			for i := range lines {
				fmt.Fprintf(&text, "building part %d\n", i)
			}
			printed := text.String()
			s.node.printedBy[s.node.orders[0].Execution].Write([]byte(printed))
			s.do("POST", path+"/kill", "")
			s.finish(outcomeKilled)
			reason := "killed by anonymous at " + time.Now().UTC().Format(time.RFC3339)
			wait(time.Second)
			for target, size := range map[string]int{"/v1/executions?limit=1&output_size_limit=200": 200, "/v1/jobs/a/executions?_end=1&output_size_limit=10": 10,
				"/v1/jobs/a/executions?_end=1&output_size_limit=5000": 5000, "/v1/jobs/a/executions?_end=1": outputBytesMax, path: outputBytesMax, "/v1/executions?limit=1": 0} {
				got := s.executionDocs(target)[0]
				want := (reason + "\n" + printed[max(0, len(printed)-max(0, size-len(reason)-1)):])
				want = want[:min(len(want), size)]
				if output, _ := got["output"].(string); got["reason"] != reason || output != want {
					t.Errorf("%d lines, %s: %v, %d bytes %.60q; want %d", lines, target, got["reason"], len(output), output, len(want))
				}
			}
		}
	})
}

// TestAPI_Running holds that what runs shows the end of what it has printed wherever it is listed, and that a node which
// does not answer holds nobody up for long.
func TestAPI_Running(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, t.TempDir(), 1)
		s.do("POST", "/v1/jobs", `{"name":"a","schedule":"@manually"}`)
		group := s.do("POST", "/v1/jobs/a", "").Header().Get("Belfry-Group")
		path := "/v1/jobs/a/executions/" + group + "-node1"
		targets := map[string]int{"/v1/busy": 4000, "/v1/jobs/a/executions": 4000, "/v1/jobs/a/executions?output_size_limit=3": 3, path: 4000,
			"/v1/executions": 0, "/v1/executions?output_size_limit=50": 50}
		check := func(printed string) {
			t.Helper()
			for target, size := range targets {
				got := s.executionDocs(target)[0]
				want := printed[max(0, len(printed)-size):]
				if output, _ := got["output"].(string); output != want || got["outcome"] != "" {
					t.Errorf("%s: %d bytes %.40q, want %d", target, len(output), output, len(want))
				}
				if cut, ok := got["output_truncated"]; ok && cut != (len(printed) > size) {
					t.Errorf("%s: output_truncated is %v of %d bytes", target, cut, len(printed))
				}
			}
		}
		wait(time.Second)
		check("")
		s.node.print("one")
		check("one\n")
		s.node.print(strings.Repeat("x", 4000))
		check("one\n" + strings.Repeat("x", 4000) + "\n")

		asked := 0
		s.plane.cfg.Name = "node2" // so that node1 is another node
		s.plane.known["id-node1"] = &contact{record: record{Name: "node1", ID: "id-node1", Addr: "node1:1"}, lastSeen: time.Now()}
		s.plane.calls.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
			asked++
			<-r.Context().Done()
			return nil, r.Context().Err()
		})
		began := time.Now()
		if list := s.executionDocs("/v1/busy"); len(list) != 1 || list[0]["output"] != nil || time.Since(began) > printedPatience || asked != 1 {
			t.Errorf("got %v after %s and %d requests", list, time.Since(began), asked)
		}
		s.executionDocs("/v1/jobs/a/executions?_start=1&_end=2")
		s.finish(outcomeSuccess)
		s.executionDocs("/v1/jobs/a/executions")
		if asked != 1 {
			t.Errorf("%d requests, want none for rows that are not on the page or have ended", asked)
		}
	})
}

// TestAPI_Warnings holds that a key which is almost one that the executor reads is refused, and that what else nobody here
// acts upon is recorded and said: in the answer, once in the log, and with the job.
func TestAPI_Warnings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, t.TempDir(), 1)
		var log bytes.Buffer
		s.api.log = slog.New(slog.NewTextHandler(&log, nil))
		for _, c := range []struct {
			job  string // what comes behind the name and the schedule
			want string // the error, or of a job that is stored the warning
		}{
			{`"executor":"http","executor_config":{"expect_code":"200"}`, `!executor_config.expect_code: the executor http reads no such key; write "expectCode"`},
			{`"executor":"http","executor_config":{"tls_no_verify_peer":"true"}`, `!write "tlsNoVerifyPeer"`},
			{`"executor":"http","executor_config":{"URL":"http://h/"}`, `!write "url"`},
			{`"executor":"shell","executor_config":{"Shell":"true"}`, `!write "shell"`},
			{`"executor":"shell","executor_config":{"comand":"true"}`, `!write "command"`},
			{`"executor":"shell","executor_config":{"ENV":"A=b"}`, `!write "env"`},
			{`"executor":"shell","executor_config":{"shell":"true","command":"x","env":"A=b","cwd":"/","timeout":"1s","mem_limit":"1MB","payload":"","su":"x","kill_timeout":"1s"}`, ""},
			{`"executor":"http","executor_config":{"method":"GET","url":"http://h/","headers":"[]","body":"x","timeout":"1","expectCode":"200","expectBody":"x","debug":"","tlsNoVerifyPeer":"","tlsCertificateFile":"","tlsCertificateKeyFile":"","tlsRootCAsFile":""}`, ""},
			{`"executor":"shell","executor_config":{"command":"x","envs":"A=b"}`, `executor_config.envs: the executor shell reads no such key.`},
			{`"executor":"shell","executor_config":{"command":"x","expectCode":"200","naïve\nkey":"1"}`, `executor_config.expectCode: the executor shell reads no such key. executor_config.na\u00efve\nkey: the executor shell reads no such key.`},
			{`"executor":"kafka","executor_config":{"Topic":"x"}`, `executor: no node has "kafka"; every run fails.`},
			{`"processors":{"fluent":{},"log":{},"slack":{"team":"x"}}`, `processors.fluent: no node has it; the output stays as it is. processors.slack: the servers have no --slack-webhook for its team; nobody is told.`},
			{`"processors":{"files":{"log_dir":"/var/log"}}`, `processors.files: log_dir and file_name must name a file below a node's --files-dir; nothing is written.`},
			{`"processors":{"files":{"log_dir":"a/../.."}}`, `processors.files: log_dir and file_name must name a file below a node's --files-dir; nothing is written.`},
			{`"processors":{"files":{"log_dir":"a/{job}"}}`, ``},
			{`"executor":"shell","executor_config":{"shell":true}`, `!executor_config.shell: a JSON bool does not fit here; write "true"`},
			{`"executor":"shell","executor_config":{"command":"x","timeout":30}`, `!executor_config.timeout: a JSON number does not fit here; write it in quotes`},
			{`"processors":{"log":{"forward":false}}`, `!processors.log.forward: a JSON bool does not fit here; write "false"`},
			{`"processors":{"log":"x"}`, `!processors.log: a JSON string does not fit here`},
			{`"tags":{"a":["x"]}`, `!tags.a: a JSON array does not fit here`},
			{`"metadata":"x"`, `!metadata: a JSON string does not fit here`},
			{`"disabled":"x"`, `!disabled: a JSON string does not fit here`},
		} {
			log.Reset()
			w := s.do("POST", "/v1/jobs", `{"name":"a","schedule":"@manually",`+c.job+`}`)
			if text, refused := strings.CutPrefix(c.want, "!"); refused {
				if w.Code != http.StatusBadRequest || !strings.HasSuffix(w.Body.String(), text) {
					t.Errorf("%s: got %d %s, want 400 %s", c.job, w.Code, w.Body, text)
				}
				continue
			}
			shown := s.do("GET", "/v1/jobs/a", "").Header().Get("Belfry-Warning")
			if got := w.Header().Get("Belfry-Warning"); w.Code != http.StatusCreated || got != c.want || shown != c.want {
				t.Errorf("%s: got %d %q, then %q; want 201 %q", c.job, w.Code, got, shown, c.want)
			}
			if n := strings.Count(log.String(), "level=WARN"); n != min(1, len(c.want)) {
				t.Errorf("%s: logged %q", c.job, &log)
			}
		}
		log.Reset()
		w := httptest.NewRecorder()
		s.handler.ServeHTTP(w, s.parseRequest("POST /v1/restore\nContent-Type: multipart/form-data; boundary=XX\n\n--XX\nContent-Disposition: form-data; name=\"file\"\n\n"+
			`[{"name":"b","schedule":"@manually","executor":"kafka"},{"name":"c","schedule":"@manually"},{"name":"d","schedule":"@manually","processors":{"fluent":{}}}]`+"\n--XX--\n"))
		if got := w.Header().Get("Belfry-Warning"); w.Code != http.StatusOK || got != `2 jobs have a warning, which GET /v1/jobs/{job} returns; the first is b.` || strings.Count(log.String(), "level=WARN") != 1 {
			t.Errorf("restore: %d %q, logged %q", w.Code, got, &log)
		}
	})
}

// TestAPI_Counters holds that the record of a job's runs is taken from a backup: in a create, and in a restore what is
// larger than what is stored; an update leaves it.
func TestAPI_Counters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, t.TempDir(), 1)
		wait(time.Hour)
		restore := func(file string) int {
			w := httptest.NewRecorder()
			s.handler.ServeHTTP(w, s.parseRequest("POST /v1/restore\nContent-Type: multipart/form-data; boundary=XX\n\n--XX\nContent-Disposition: form-data; name=\"file\"\n\n["+file+"]\n--XX--\n"))
			return w.Code
		}
		job := func(name string, good, bad int, last string) string {
			return fmt.Sprintf(`{"name":"%s","schedule":"@manually","success_count":%d,"error_count":%d,"last_success":"%s","last_error":null}`, name, good, bad, last)
		}
		check := func(name string, good, bad int, last string) {
			t.Helper()
			got := s.executionDocs("/v1/jobs/" + name)[0]
			if fmt.Sprint(got["success_count"], got["error_count"], got["last_success"]) != fmt.Sprint(good, bad, last) {
				t.Errorf("%s: %v good, %v failed, last %v; want %d, %d, %s", name, got["success_count"], got["error_count"], got["last_success"], good, bad, last)
			}
		}
		const early, late = "1999-12-31T00:00:00Z", "2000-01-01T00:30:00Z"
		w := s.do("POST", "/v1/jobs", job("a", 7, 2, early))
		if w.Code != http.StatusCreated || !strings.Contains(w.Body.String(), `"success_count":7,"error_count":2,"last_success":"`+early+`"`) {
			t.Errorf("got %d %s", w.Code, w.Body)
		}
		check("a", 7, 2, early)
		s.do("POST", "/v1/jobs", job("a", 100, 100, late))
		check("a", 7, 2, early)
		if audit := s.do("GET", "/v1/audit?limit=1", "").Body.String(); strings.Contains(audit, "100") {
			t.Errorf("the audit trail has counters that did not count: %s", audit)
		}
		if code := restore(job("a", 3, 9, late) + "," + job("b", 5, 0, early)); code != http.StatusOK {
			t.Errorf("got %d", code)
		}
		check("a", 7, 9, late)
		check("b", 5, 0, early)
		s.do("POST", "/v1/jobs/a", "")
		s.finish(outcomeSuccess)
		check("a", 8, 9, "2000-01-01T01:00:01.5Z")
		for _, bad := range []string{job("c", -1, 0, early), job("c", 0, -1, early), job("c", 1, 0, "2000-01-01T02:00:00Z"), job("c", 1, 0, "1960-01-01T00:00:00Z"), job("c", 1, 0, "9999-01-01T00:00:00Z")} {
			if w := s.do("POST", "/v1/jobs", bad); w.Code != http.StatusBadRequest {
				t.Errorf("%s: got %d %s", bad, w.Code, w.Body)
			}
			if code := restore(bad); code != http.StatusBadRequest {
				t.Errorf("%s: restored with %d", bad, code)
			}
		}
	})
}
