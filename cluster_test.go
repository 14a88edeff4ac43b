package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Servers and agents with real disks and connections, in this process

const (
	testBeat = 100 * time.Millisecond
	testTick = 2 * tickTime // an election timeout of a second: the race detector is slow, and so are busy machines
)

var testKey = bytes.Repeat([]byte{7}, 32)

// peerNode is a server or an agent. It runs from start to stop or kill, and
// can be started again.
type peerNode struct {
	t   *testing.T
	cfg planeConfig
	log *slog.Logger

	plane   *plane
	store   *store   // nil: an agent
	cluster *cluster // nil: an agent
	dir     *agentDir
	cancel  context.CancelFunc
	ended   sync.WaitGroup
	errs    [2]error // of plane and cluster, after ended
	kept    logRetention

	mu       sync.Mutex
	orders   []order  // guarded by mu: what it was given
	reported []result // guarded by mu: what it took as leader
	refusal  error    // guarded by mu: what it answers to dispatches
}

// newPeer makes a node of a test; join are nodes that run.
func newPeer(t *testing.T, name string, expect int, join ...*peerNode) *peerNode {
	t.Helper()
	n := &peerNode{t: t, log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("on", name)}
	n.cfg = planeConfig{Name: name, Server: true, Bind: "127.0.0.1:0", Key: testKey, Dir: t.TempDir(), JoinPause: testBeat, Expect: expect, Beat: testBeat}
	n.join(join...)
	t.Cleanup(n.stop)
	return n
}

// join adds the addresses of nodes that run to those that this one tries.
func (n *peerNode) join(nodes ...*peerNode) {
	for _, other := range nodes {
		n.cfg.Join = append(n.cfg.Join, other.plane.own().Addr)
	}
}

func startPeer(t *testing.T, name string, expect int, join ...*peerNode) *peerNode {
	t.Helper()
	n := newPeer(t, name, expect, join...)
	n.start()
	return n
}

func startWorker(t *testing.T, name string, join ...*peerNode) *peerNode {
	t.Helper()
	n := newPeer(t, name, 0, join...)
	n.cfg.Server = false
	n.start()
	return n
}

// start runs the node in its directory. Its address is a new one each time.
func (n *peerNode) start() {
	n.t.Helper()
	n.cfg.Incarnation = newIncarnation()
	hooks := planeHooks{start: n.take, ask: n.answer, kill: func(k kill) error { return errUnknownExecution }, output: n.output, report: n.report, api: http.HandlerFunc(n.serveAPI)}
	var err error
	if n.cfg.Server {
		n.store, err = openStore(n.cfg.Dir)
		n.must(err)
		if n.kept != (logRetention{}) {
			n.store.kept = n.kept
		}
		own, err := n.store.own()
		n.must(err)
		n.cfg.ID = own.ID
	} else {
		n.dir, err = openAgentDir(n.cfg.Dir)
		n.must(err)
		n.cfg.ID, n.cfg.Cluster, hooks.joined = n.dir.node.ID, n.dir.node.Cluster, n.dir.join
	}
	n.plane, err = newPlane(n.cfg, hooks, n.log)
	n.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	if n.cfg.Server {
		n.cluster, err = newCluster(n.plane, n.store, testTick, func(ctx context.Context, _ uint64) error { <-ctx.Done(); return nil })
		n.must(err)
		n.ended.Go(func() { n.errs[1] = n.cluster.run(ctx) })
	}
	n.ended.Go(func() { n.errs[0] = n.plane.run(ctx) })
}

func (n *peerNode) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatalf("%s: %v", n.cfg.Name, err)
	}
}

// kill ends the node without a word to the others, as a crash does. The
// database is checked.
func (n *peerNode) kill() {
	n.t.Helper()
	if n.cancel == nil {
		return
	}
	n.cancel()
	n.ended.Wait()
	n.cancel = nil
	if err := errors.Join(n.errs[:]...); err != nil {
		n.t.Errorf("%s ended: %v", n.cfg.Name, err)
	}
	if n.dir != nil {
		n.must(n.dir.close())
		return
	}
	if err := n.store.check(); err != nil {
		n.t.Errorf("%s: %v", n.cfg.Name, err)
	}
	n.must(n.store.close())
}

// stop ends the node in good order, but for the hand-over.
func (n *peerNode) stop() {
	n.t.Helper()
	if n.cancel != nil {
		n.plane.leaving()
	}
	n.kill()
}

func (n *peerNode) take(d dispatch) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if d.Incarnation != n.cfg.Incarnation {
		return errOtherIncarnation
	}
	if n.refusal != nil {
		return n.refusal
	}
	n.orders = append(n.orders, d.Orders...)
	return nil
}

func (n *peerNode) answer(q question) (answer, error) {
	return answer{Incarnation: n.cfg.Incarnation, Running: q.Executions, Held: []result{{Execution: 7, Outcome: outcomeSuccess, Output: []byte("held by " + n.cfg.Name)}}}, nil
}

func (n *peerNode) output(ctx context.Context, execution int64, follow bool, from int64, w io.Writer) error {
	if execution != 7 {
		return errUnknownExecution
	}
	_, err := io.WriteString(w, "printed on "+n.cfg.Name)
	if follow && err == nil {
		<-ctx.Done()
		err = ctx.Err()
	}
	return err
}

func (n *peerNode) report(ctx context.Context, results []result) (ids []int64, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range results {
		n.reported, ids = append(n.reported, r), append(ids, r.Execution)
	}
	return ids, nil
}

// serveAPI is a tiny API: it stores a job under the name that is posted.
func (n *peerNode) serveAPI(w http.ResponseWriter, r *http.Request) {
	f, ok := forwardedFrom(r.Context())
	if !n.plane.leading() && ok && !f.Final {
		if err := n.plane.forward(w, r, f.Actor, f.Request); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
		return
	}
	name, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	res, err := n.cluster.propose(r.Context(), putCommand(string(name)))
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set(headerIndex, fmt.Sprint(res.Index))
	fmt.Fprintf(w, "%s asked %s %s, id %s", f.Actor, r.Method, r.URL.RequestURI(), f.Request)
}

func putCommand(name string) *command {
	return &command{Now: testStart, Request: "put " + name, Put: []jobPut{{
		Job: job{Name: name, Schedule: "0 0 0 1 1 *", Executor: "http", ExecutorConfig: map[string]string{"method": "GET", "url": "http://127.0.0.1/"}}, Next: never}}}
}

// leaderOf waits until one of nodes leads and all others follow it.
func leaderOf(t *testing.T, nodes ...*peerNode) *peerNode {
	t.Helper()
	var leader *peerNode
	eventually(t, "one leader that all follow", func() bool {
		leader = nil
		for _, n := range nodes {
			if n.cluster.leading() {
				leader = n
			}
		}
		return leader != nil && !slices.ContainsFunc(nodes, func(n *peerNode) bool { return n.cluster.status().Leader.ID != leader.cfg.ID })
	})
	return leader
}

// put stores a job through whichever of nodes leads.
func put(t *testing.T, name string, nodes ...*peerNode) applied {
	t.Helper()
	var res applied
	eventually(t, "stored job "+name, func() bool {
		var err error
		res, err = leaderOf(t, nodes...).cluster.propose(t.Context(), putCommand(name))
		return err == nil
	})
	return res
}

// same waits until all nodes have the same state.
func same(t *testing.T, nodes ...*peerNode) {
	t.Helper()
	var dumps []string
	eventually(t, "equal states", func() bool {
		dumps = nil
		for _, n := range nodes {
			dump, err := n.store.dump()
			n.must(err)
			dumps = append(dumps, dump)
		}
		return len(slices.Compact(slices.Clone(dumps))) == 1
	})
}

func voterNames(n *peerNode) string {
	var names []string
	st := n.cluster.status()
	for _, v := range st.Voters {
		names = append(names, v.Name)
	}
	if st.VotersIndex > st.Commit {
		return "not committed"
	}
	return strings.Join(names, " ")
}

// voters waits until the committed voters are those named.
func voters(t *testing.T, names string, nodes ...*peerNode) {
	t.Helper()
	for _, n := range nodes {
		eventually(t, n.cfg.Name+" knows the voters "+names, func() bool { return voterNames(n) == names })
	}
}

// trio founds a cluster of three.
func trio(t *testing.T) []*peerNode {
	t.Helper()
	a := startPeer(t, "a", 3)
	nodes := []*peerNode{a, startPeer(t, "b", 3, a), startPeer(t, "c", 3, a)}
	voters(t, "a b c", nodes...)
	return nodes
}

func hasTrouble(n *peerNode, text string) bool {
	return slices.ContainsFunc(n.plane.troubles(), func(s string) bool { return strings.Contains(s, text) })
}

// A server alone makes a cluster at once; two more are taken in one after the
// other, with nothing but its address.
func TestCluster_Grow(t *testing.T) {
	a := startPeer(t, "a", 1)
	voters(t, "a", a)
	put(t, "first", a)
	b, c := startPeer(t, "b", 0, a), startPeer(t, "c", 0, a)
	voters(t, "a b c", a, b, c)
	if l := leaderOf(t, a, b, c); l != a {
		t.Errorf("%s leads, want a: a leader that works stays", l.cfg.Name)
	}
	put(t, "second", a, b, c)
	same(t, a, b, c)
	for _, n := range []*peerNode{a, b, c} {
		if own, err := n.store.own(); err != nil || own.Cluster != a.plane.clusterID() || own.Cluster == "" {
			t.Errorf("%s belongs to cluster %q, %v; want that of a", n.cfg.Name, own.Cluster, err)
		}
		eventually(t, "three members", func() bool { return len(n.plane.members()) == 3 })
		if !reflect.DeepEqual(n.plane.members(), a.plane.members()) {
			t.Errorf("members on %s: %v, on a: %v", n.cfg.Name, n.plane.members(), a.plane.members())
		}
	}
}

// What was acknowledged survives the death of the leader, and of all servers at
// once; who comes back, at another address, catches up.
func TestCluster_KillAndRestart(t *testing.T) {
	nodes := trio(t)
	put(t, "one", nodes...)
	leader := leaderOf(t, nodes...)
	leader.kill()
	rest := slices.DeleteFunc(slices.Clone(nodes), func(n *peerNode) bool { return n == leader })
	put(t, "two", rest...)
	leader.start()
	put(t, "three", nodes...)
	same(t, nodes...)

	for _, n := range nodes {
		n.kill()
	}
	for _, n := range nodes { // the addresses are new, those in the files are stale: only --join is left
		n.cfg.Join = nil
	}
	nodes[0].start()
	nodes[1].join(nodes[0])
	nodes[2].join(nodes[0])
	nodes[1].start()
	nodes[2].start()
	put(t, "four", nodes...)
	same(t, nodes...)
	if _, err := nodes[2].store.job("one"); err != nil {
		t.Error(err)
	}
}

// Five servers work with three, and stop with two: the leader says so.
func TestCluster_Five(t *testing.T) {
	a := startPeer(t, "a", 5)
	nodes := []*peerNode{a}
	for _, name := range []string{"b", "c", "d", "e"} {
		nodes = append(nodes, startPeer(t, name, 5, a))
	}
	voters(t, "a b c d e", nodes...)
	put(t, "one", nodes...)
	for range 2 {
		leader := leaderOf(t, nodes...)
		leader.kill()
		nodes = slices.DeleteFunc(nodes, func(n *peerNode) bool { return n == leader })
	}
	put(t, "two", nodes...)
	leader := leaderOf(t, nodes...)
	other := nodes[(slices.Index(nodes, leader)+1)%3]
	other.kill()
	eventually(t, "the leader steps down", func() bool { return !leader.cluster.leading() })
	if _, err := leader.cluster.propose(t.Context(), putCommand("three")); !errors.Is(err, errNotLeader) {
		t.Errorf("propose without a majority: %v, want %v", err, errNotLeader)
	}
	other.start()
	other.plane.learn(greeting{From: leader.plane.own()}, "") // it knows only stale addresses
	put(t, "four", nodes...)
	same(t, nodes...)
}

// A follower whose next entry is gone from the leader's log gets a snapshot; so
// does a new server. Its term, vote and id stay its own.
func TestCluster_Snapshot(t *testing.T) {
	small := logRetention{entries: 10, bytes: 1 << 20, slack: 5}
	var nodes []*peerNode
	for _, name := range []string{"a", "b", "c"} {
		n := newPeer(t, name, 3, nodes[:min(1, len(nodes))]...)
		n.kept = small
		n.start()
		nodes = append(nodes, n)
	}
	voters(t, "a b c", nodes...)
	leader := leaderOf(t, nodes...)
	behind := nodes[(slices.Index(nodes, leader)+1)%3]
	before := behind.cfg.ID
	behind.kill()
	rest := slices.DeleteFunc(slices.Clone(nodes), func(n *peerNode) bool { return n == behind })
	for i := range 60 {
		put(t, fmt.Sprint("job-", i), rest...)
	}
	behind.cfg.Join = nil
	behind.join(leader)
	behind.start()
	fresh := newPeer(t, "d", 0, leader)
	fresh.kept = small
	fresh.start()
	nodes = append(nodes, fresh)
	voters(t, "a b c d", nodes...)
	same(t, nodes...)
	put(t, "last", nodes...)
	same(t, nodes...)
	for _, n := range []*peerNode{behind, fresh} {
		disk, err := n.store.saved()
		n.must(err)
		if disk.Base.Index < 20 {
			t.Errorf("the log of %s begins behind %v: it got no snapshot", n.cfg.Name, disk.Base)
		}
		if left, _ := filepath.Glob(filepath.Join(n.cfg.Dir, imagePattern)); len(left) > 0 {
			t.Errorf("left in the directory of %s: %v", n.cfg.Name, left)
		}
	}
	if behind.cfg.ID != before {
		t.Errorf("the snapshot changed the node's id from %s to %s", before, behind.cfg.ID)
	}
}

// A new disk under the name of a dead server takes its place among the voters.
func TestCluster_ReplacedDisk(t *testing.T) {
	nodes := trio(t)
	put(t, "one", nodes...)
	leader := leaderOf(t, nodes...)
	dead := nodes[(slices.Index(nodes, leader)+1)%3]
	old := dead.cfg.ID
	dead.kill()
	dead.cfg.Dir = t.TempDir()
	dead.cfg.Join = nil
	dead.join(leader)
	dead.start()
	for _, n := range nodes {
		eventually(t, n.cfg.Name+" counts the new disk as a voter", func() bool {
			v := n.cluster.status().Voters
			return voterNames(n) == "a b c" && slices.Contains(v, server{dead.cfg.Name, dead.cfg.ID})
		})
	}
	if old == dead.cfg.ID {
		t.Fatal("the new disk has the old id")
	}
	put(t, "two", nodes...)
	same(t, nodes...)
}

// A leader that is asked to hands over within moments; alone it cannot, and
// goes on.
func TestCluster_HandOver(t *testing.T) {
	nodes := trio(t)
	leader := leaderOf(t, nodes...)
	eventually(t, "a hand-over", func() bool { return leader.cluster.handOver(t.Context()) == nil })
	if next := leaderOf(t, nodes...); next == leader {
		t.Error("the leader still leads after it has handed over")
	}
	alone := startPeer(t, "z", 1)
	put(t, "one", alone)
	if err := alone.cluster.handOver(t.Context()); !errors.Is(err, errBusy) {
		t.Errorf("handing over without another server: %v, want %v", err, errBusy)
	}
	put(t, "two", alone)
}

// A server that leaves is no voter any more when it says so, and it is taken in
// again when it comes back. One that lives cannot be removed, one that is dead can.
func TestCluster_Leave(t *testing.T) {
	nodes := trio(t)
	leader := leaderOf(t, nodes...)
	follower, third := nodes[(slices.Index(nodes, leader)+1)%3], nodes[(slices.Index(nodes, leader)+2)%3]
	if err := follower.plane.removePeer(t.Context(), third.cfg.ID); !errors.Is(err, errAliveVoter) {
		t.Errorf("removing a live server: %v, want %v", err, errAliveVoter)
	}
	if err := follower.plane.removePeer(t.Context(), "nobody"); !errors.Is(err, errNoServer) {
		t.Errorf("removing nobody: %v, want %v", err, errNoServer)
	}
	leader.must(leader.plane.leave(t.Context()))
	leader.stop()
	rest := []*peerNode{follower, third}
	slices.SortFunc(rest, func(a, b *peerNode) int { return strings.Compare(a.cfg.Name, b.cfg.Name) })
	voters(t, rest[0].cfg.Name+" "+rest[1].cfg.Name, rest...)
	for _, m := range rest[0].plane.members() {
		if m.Name == leader.cfg.Name && m.Status != memberLeft {
			t.Errorf("%s has status %d, want %d: left", m.Name, m.Status, memberLeft)
		}
	}
	leader.cfg.Join = nil
	leader.join(rest...)
	leader.start()
	voters(t, "a b c", nodes...)

	third.kill()
	live := []*peerNode{leader, follower}
	eventually(t, "the dead server is removed", func() bool { return leaderOf(t, live...).plane.removePeer(t.Context(), third.cfg.ID) == nil })
	for _, p := range follower.plane.peers() {
		if p.ID == third.cfg.ID && p.Voter {
			t.Errorf("%s still votes", p.Node)
		}
	}
}

// Servers of which one is too many, or that were told different numbers, found
// nothing, and say what to do. When that is done, they do.
func TestCluster_BootstrapRefusals(t *testing.T) {
	a := startPeer(t, "a", 2)
	b := startPeer(t, "b", 3, a)
	eventually(t, "a says that b expects another number", func() bool { return hasTrouble(a, "--bootstrap-expect=3") })
	b.kill()
	b.cfg.Expect = 2
	b.cfg.Join = append(b.cfg.Join, a.plane.own().Addr)
	c := newPeer(t, "c", 2, a)
	// Both at once would be a race that either may win; so b waits until c is seen.
	c.start()
	voters(t, "a c", a, c)
	b.start()
	voters(t, "a b c", a, b, c) // one too many is taken in
	if len(a.plane.troubles())+len(b.plane.troubles())+len(c.plane.troubles()) > 0 {
		eventually(t, "no trouble", func() bool {
			return len(a.plane.troubles())+len(b.plane.troubles())+len(c.plane.troubles()) == 0
		})
	}
}

// The rules of founding, one by one.
func TestNextStep(t *testing.T) {
	empty := func(name string, expect int) record {
		return record{Name: name, ID: "id-" + name, Expect: expect, Empty: true, Server: true}
	}
	list := &founders{"x", []server{{"a", "id-a"}, {"b", "id-b"}}}
	accepted := func(name string, l *founders) record {
		r := empty(name, 2)
		r.Accepted = l
		return r
	}
	member := empty("m", 0)
	member.Cluster, member.Empty = "y", false
	restored := empty("r", 2)
	restored.Empty = false
	for _, test := range []struct {
		name   string
		self   record
		others []record
		accept *founders
		found  *founders
		why    string
	}{
		{name: "Alone", self: empty("a", 1), accept: &founders{"new", []server{{"a", "id-a"}}}},
		{name: "FirstProposes", self: empty("a", 2), others: []record{empty("b", 2)}, accept: &founders{"new", list.Voters}},
		{name: "SecondWaits", self: empty("b", 2), others: []record{empty("a", 2)}, why: "waits for a list of founders from a"},
		{name: "SecondAccepts", self: empty("b", 2), others: []record{accepted("a", list)}, accept: list},
		{name: "NotWithoutAll", self: accepted("a", list), others: []record{empty("b", 2)}, why: "when b agrees too"},
		{name: "GoneForGood", self: accepted("a", list), why: "empty their data directories"},
		{name: "AllAccepted", self: accepted("a", list), others: []record{accepted("b", list)}, found: list},
		{name: "AcceptedAnother", self: accepted("a", list), others: []record{accepted("b", &founders{"z", nil})}, why: "has agreed to found another cluster"},
		{name: "OthersHaveFounded", self: accepted("a", list), others: []record{func() record { r := member; r.ID, r.Cluster = "id-b", "x"; return r }()}, found: list},
		{name: "TooFew", self: empty("a", 3), others: []record{empty("b", 3)}, why: "waits for 1 more"},
		{name: "TooMany", self: empty("a", 2), others: []record{empty("b", 2), empty("c", 2)}, why: "3 servers were started with --bootstrap-expect=2: stop one"},
		{name: "OtherNumber", self: empty("a", 2), others: []record{empty("b", 3)}, why: "start both with the same number"},
		{name: "WithoutExpect", self: empty("a", 0), others: []record{empty("b", 0)}, why: "knows none"},
		{name: "DoesNotCount", self: empty("a", 1), others: []record{empty("b", 0)}, accept: &founders{"new", []server{{"a", "id-a"}}}},
		{name: "ClusterIsThere", self: empty("a", 2), others: []record{empty("b", 2), member}, why: "waits to be taken in by the cluster of m"},
		{name: "NotOnTheList", self: empty("c", 2), others: []record{accepted("a", list)}, why: "waits to be taken in by the cluster of a"},
		{name: "RestoredOther", self: empty("a", 2), others: []record{restored}, why: "restored from a backup"},
		{name: "RestoredMeetsCluster", self: restored, others: []record{member}, why: "cannot join the cluster of m"},
		{name: "RestoredWaits", self: restored, why: "founds a cluster alone"},
		{name: "Member", self: member, others: []record{empty("b", 2)}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := nextStep(test.self, test.others, "new")
			if !reflect.DeepEqual(got.accept, test.accept) || !reflect.DeepEqual(got.found, test.found) || !strings.Contains(got.why, test.why) || test.why == "" && got.why != "" {
				t.Errorf("got accept %v, found %v, %q; want %v, %v, %q", got.accept, got.found, got.why, test.accept, test.found, test.why)
			}
		})
	}
}

// Who does not have the cluster key gets no connection, in either direction.
func TestPlane_Key(t *testing.T) {
	a := startPeer(t, "a", 1)
	voters(t, "a", a)
	b := newPeer(t, "b", 0, a)
	b.cfg.Key = bytes.Repeat([]byte{8}, 32)
	b.start()
	err := b.plane.greet(t.Context(), a.plane.own().Addr, greeting{From: b.plane.own()})
	if !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "--encrypt") {
		t.Errorf("a heartbeat with another key: %v, want a refusal that names --encrypt", err)
	}
	// One that would talk to anybody is not talked to, and neither is one without TLS.
	loose, err := clusterTLS(b.cfg.Key)
	a.must(err)
	loose.VerifyConnection = nil
	for name, dial := range map[string]func(string) (net.Conn, error){
		"another key": func(addr string) (net.Conn, error) { return tls.Dial("tcp", addr, loose) },
		"no TLS":      func(addr string) (net.Conn, error) { return net.Dial("tcp", addr) },
	} {
		conn, err := dial(a.plane.own().Addr)
		a.must(err)
		fmt.Fprintf(conn, "GET /self HTTP/1.1\r\nHost: localhost\r\n%s: %s\r\n\r\n", headerFormat, planeFormat)
		a.must(conn.SetReadDeadline(time.Now().Add(patience)))
		if text, err := io.ReadAll(conn); bytes.Contains(text, []byte("200 OK")) {
			t.Errorf("%s: the plane answers %q, %v", name, text, err)
		}
		conn.Close()
	}
	if n := len(a.plane.members()); n != 1 {
		t.Errorf("%d members, want 1", n)
	}

	for addr, ok := range map[string]bool{"127.0.0.1:0": true, "0.0.0.0:0": false} {
		p, err := newPlane(planeConfig{Name: "x", Bind: addr}, planeHooks{}, a.log)
		if err == nil {
			a.must(p.listener.Close())
		}
		if (err == nil) != ok {
			t.Errorf("a plane without a key on %s: %v", addr, err)
		}
	}
}

// What another cluster sends, what has an unknown format, is malformed or too
// large is refused and counted, and nothing changes.
func TestPlane_Refusals(t *testing.T) {
	a := startPeer(t, "a", 1)
	voters(t, "a", a)
	put(t, "one", a)
	before, err := a.store.dump()
	a.must(err)
	term := a.cluster.status().Term
	self := server{"a", a.cfg.ID}
	vote := message{Kind: msgVote, From: server{"x", "id-x"}, To: self, Term: 99}
	pack := func(cluster string, messages ...message) []byte {
		data, err := encodePacket(cluster, messages)
		a.must(err)
		return data
	}
	own := a.plane.clusterID()
	misdirected := vote
	misdirected.To.ID = "id-y"
	entries := message{Kind: msgAppend, From: vote.From, To: self, Term: 99, Entries: []entry{{Index: 5, Term: 1}}}
	for _, test := range []struct {
		name, path string
		body       []byte
		header     map[string]string
		counter    *atomic.Int64
	}{
		{name: "Foreign", path: "/raft", body: pack("another", vote), counter: &a.plane.refused.foreign},
		{name: "Format", path: "/raft", body: append([]byte{9}, pack(own, vote)[1:]...), counter: &a.plane.refused.format},
		{name: "Malformed", path: "/raft", body: pack(own, vote)[:20], counter: &a.plane.refused.malformed},
		{name: "MalformedForTheProtocol", path: "/raft", body: pack(own, entries), counter: &a.plane.refused.malformed},
		{name: "Misdirected", path: "/raft", body: pack(own, misdirected), counter: &a.plane.refused.misdirected},
		{name: "TooLarge", path: "/raft", body: make([]byte, packetBytesMax+1), counter: &a.plane.refused.tooLarge},
		{name: "CallOfForeign", path: "/dispatch", body: []byte("{}"), header: map[string]string{headerCluster: "another"}, counter: &a.plane.refused.foreign},
		{name: "CallToAnother", path: "/dispatch", body: []byte("{}"), header: map[string]string{headerTo: "id-y"}, counter: &a.plane.refused.misdirected},
		{name: "CallFormat", path: "/dispatch", body: []byte("{}"), header: map[string]string{headerFormat: "2"}, counter: &a.plane.refused.format},
		{name: "CallMalformed", path: "/dispatch", body: []byte("[]"), counter: &a.plane.refused.malformed},
		{name: "Greeting", path: "/members", body: []byte("{}"), counter: &a.plane.refused.malformed},
		{name: "Snapshot", path: "/snapshot", body: append(binary.BigEndian.AppendUint32(nil, uint32(len(pack("another", vote)))), pack("another", vote)...), counter: &a.plane.refused.malformed},
	} {
		t.Run(test.name, func(t *testing.T) {
			count := test.counter.Load()
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, a.plane.scheme+"://"+a.plane.own().Addr+test.path, bytes.NewReader(test.body))
			a.must(err)
			a.plane.sign(r.Header, a.plane.own(), false)
			for k, v := range test.header {
				r.Header.Set(k, v)
			}
			if resp, err := a.plane.client.Do(r); err == nil { // a body that is too large may break the connection
				resp.Body.Close()
			}
			eventually(t, "it is counted", func() bool { return test.counter.Load() == count+1 })
		})
	}
	after, err := a.store.dump()
	a.must(err)
	if after != before || a.cluster.status().Term != term || !a.cluster.leading() {
		t.Errorf("something changed: term %d, before %d; state\n%s\nbefore\n%s", a.cluster.status().Term, term, after, before)
	}
}

// Without a cluster key the plane refuses what a browser on this machine can
// be made to send.
func TestPlane_Browser(t *testing.T) {
	p, err := newPlane(planeConfig{Name: "x", ID: "id-x", Bind: "127.0.0.1:0"}, planeHooks{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer p.listener.Close()
	for name, test := range map[string]struct {
		host   string
		format string
		want   int
	}{
		"OK":           {"127.0.0.1:8946", planeFormat, http.StatusOK},
		"ErrNoHeaders": {"127.0.0.1:8946", "", http.StatusConflict},
		"ErrRebinding": {"evil.example:8946", planeFormat, http.StatusConflict},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, "/self", nil)
			r.Host = test.host
			r.Header.Set(headerFormat, test.format)
			w := httptest.NewRecorder()
			p.handler().ServeHTTP(w, r)
			if w.Code != test.want {
				t.Errorf("got %d, want %d", w.Code, test.want)
			}
		})
	}
}

// Two clusters that meet stay two, and each says what to do.
func TestPlane_ForeignCluster(t *testing.T) {
	a, b := startPeer(t, "a", 1), startPeer(t, "b", 1)
	voters(t, "a", a)
	voters(t, "b", b)
	b.kill()
	b.join(a)
	b.start()
	eventually(t, "b says that a belongs to another cluster", func() bool { return hasTrouble(b, "two clusters are never merged") })
	put(t, "of-a", a)
	put(t, "of-b", b)
	if _, err := a.store.job("of-b"); !errors.Is(err, errNoJob) {
		t.Errorf("a job of b on a: %v", err)
	}
	if len(a.plane.members())+len(b.plane.members()) != 2 {
		t.Errorf("members: %v and %v", a.plane.members(), b.plane.members())
	}
	// An agent that has served one cluster does not serve another.
	w := startWorker(t, "w", a)
	eventually(t, "w belongs to a's cluster", func() bool { return w.plane.clusterID() == a.plane.clusterID() })
	w.kill()
	w.cfg.Join = nil
	w.join(b)
	w.start()
	eventually(t, "w says that b belongs to another cluster", func() bool { return hasTrouble(w, "empty --data-dir") })
}

// The name of a live node cannot be taken, and neither can its id: the newcomer
// takes no part, and says why. When the first is gone, the newcomer is in.
func TestPlane_Clash(t *testing.T) {
	a := startPeer(t, "a", 1)
	voters(t, "a", a)
	first := startWorker(t, "w", a)
	eventually(t, "w is a member", func() bool { return len(a.plane.nodes()) == 2 })
	second := startWorker(t, "w", a)
	eventually(t, "the second w is told that its name is taken", func() bool { return hasTrouble(second, "--node-name") })
	self := startPeer(t, "a", 0, a)
	eventually(t, "the second a is told that its name is taken", func() bool { return hasTrouble(self, "--node-name") })
	if second.plane.admitted.Load() || self.plane.admitted.Load() {
		t.Error("a node whose name is taken takes part")
	}
	self.kill()

	twin := newPeer(t, "w", 0, a)
	twin.cfg.Server = false
	for _, name := range []string{nodeFile, peersFile} {
		doc, err := os.ReadFile(filepath.Join(first.cfg.Dir, name))
		if !errors.Is(err, os.ErrNotExist) {
			twin.must(err)
			twin.must(os.WriteFile(filepath.Join(twin.cfg.Dir, name), doc, 0o600))
		}
	}
	twin.start()
	eventually(t, "the twin is told that its id is taken", func() bool { return hasTrouble(twin, "empty --data-dir") })
	if got := a.plane.nodes()[1].Incarnation; got != first.cfg.Incarnation {
		t.Errorf("w has incarnation %d, want that of the first process, %d", got, first.cfg.Incarnation)
	}
	twin.kill()

	first.kill()
	eventually(t, "the second w is in", func() bool {
		nodes := a.plane.nodes()
		return len(nodes) == 2 && nodes[1].Incarnation == second.cfg.Incarnation && second.plane.admitted.Load()
	})
}

// A node that is silent counts as failed, one that comes back elsewhere is
// itself at once, and one that was not heard for a day is forgotten.
func TestPlane_Members(t *testing.T) {
	a := startPeer(t, "a", 1)
	w := startWorker(t, "w", a)
	status := func(name string) int {
		for _, m := range a.plane.members() {
			if m.Name == name {
				return m.Status
			}
		}
		return 0
	}
	eventually(t, "w is alive", func() bool { return status("w") == memberAlive })
	w.kill()
	eventually(t, "w has failed", func() bool { return status("w") == memberFailed })
	w.start()
	eventually(t, "w is back", func() bool { return status("w") == memberAlive })
	addr := w.plane.own().Addr
	w.kill() // and back before anybody counts it as failed
	w.start()
	eventually(t, "w is where it is now", func() bool {
		r, ok := a.plane.byName("w")
		return ok && r.Addr != addr && r.Addr == w.plane.own().Addr && r.Incarnation == w.cfg.Incarnation
	})
	w.plane.leaving()
	eventually(t, "w is leaving", func() bool { return status("w") == memberLeaving })
	w.kill()
	eventually(t, "w has left", func() bool { return status("w") == memberLeft })
	a.plane.servers(time.Now().Add(forgetAfter / 2))
	if status("w") != memberLeft {
		t.Error("w was forgotten within a day")
	}
	a.plane.servers(time.Now().Add(forgetAfter + time.Minute))
	if status("w") != 0 {
		t.Error("w was not forgotten after a day")
	}
}

// A heartbeat counts once, by whatever way it comes: servers that tell each
// other of a dead node do not keep it alive.
func TestPlane_HearLocked(t *testing.T) {
	now := time.Now()
	r := func(incarnation, beat uint64) record {
		return record{Name: "w", ID: "id-w", Incarnation: incarnation, Beat: beat, Status: memberAlive, Server: true}
	}
	other := record{Name: "w", ID: "id-v", Incarnation: 3, Beat: 1, Status: memberAlive, Server: true}
	for _, test := range []struct {
		name string
		r    record
		age  time.Duration // the first was heard four seconds ago, with beat 10 of incarnation 1
		want bool
	}{
		{"Newer", r(1, 11), 0, true},
		{"Echo", r(1, 10), time.Second, false},
		{"Older", r(1, 9), 0, false},
		{"NextProcess", r(2, 1), 3 * time.Second, true},
		{"FormerProcess", r(2, 99), 5 * time.Second, false},
		{"Namesake", other, 3 * time.Second, true},
		{"FormerNamesake", other, 5 * time.Second, false},
		{"LongAgo", r(1, 11), 2 * forgetAfter, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := &plane{cfg: planeConfig{Server: true, Beat: time.Second}, log: slog.New(slog.DiscardHandler), known: map[string]*contact{}}
			p.hearLocked(r(1, 10), 4*time.Second, now)
			p.hearLocked(test.r, test.age, now)
			c := p.byNameLocked("w")
			if len(p.known) != 1 || c == nil {
				t.Fatalf("known: %v", p.known)
			}
			if got := now.Sub(c.heard) == test.age && c.ID == test.r.ID; got != test.want {
				t.Errorf("heard %v ago with %v, taken %t, want %t", now.Sub(c.heard), c.record, got, test.want)
			}
		})
	}
}

// Orders, questions, kills, outputs and results travel between nodes, and their
// errors say whether anything can have been done.
func TestPlane_Calls(t *testing.T) {
	a := startPeer(t, "a", 1)
	b := startPeer(t, "b", 0, a)
	w := startWorker(t, "w", a)
	voters(t, "a b", a, b)
	eventually(t, "all know each other", func() bool {
		return len(a.plane.nodes()) == 3 && len(b.plane.nodes()) == 3 && len(w.plane.members()) == 3 && w.plane.clusterID() != ""
	})
	ctx := t.Context()
	leader := leaderOf(t, a, b)

	d := dispatch{Term: 1, Number: 1, Orders: []order{{Execution: 7, Job: "x"}}}
	for _, n := range []*peerNode{a, b, w} {
		d.Incarnation = n.cfg.Incarnation
		if err := a.plane.dispatchTo(ctx, n.cfg.Name, d); err != nil || len(n.orders) != 1 {
			t.Errorf("dispatch to %s: %v, it has %d orders", n.cfg.Name, err, len(n.orders))
		}
		answer, err := a.plane.askNode(ctx, n.cfg.Name, question{Executions: []int64{7}})
		if err != nil || string(answer.Held[0].Output) != "held by "+n.cfg.Name || answer.Incarnation != n.cfg.Incarnation {
			t.Errorf("question to %s: %v, %v", n.cfg.Name, answer, err)
		}
		if err := a.plane.killOn(ctx, n.cfg.Name, kill{Execution: 9}); !errors.Is(err, errRefused) || !errors.Is(err, errUnknownExecution) {
			t.Errorf("kill on %s: %v, want refused: %v", n.cfg.Name, err, errUnknownExecution)
		}
		var out bytes.Buffer
		if err := b.plane.outputFrom(ctx, n.cfg.Name, 7, false, 0, &out); err != nil || out.String() != "printed on "+n.cfg.Name {
			t.Errorf("output from %s: %q, %v", n.cfg.Name, out.String(), err)
		}
		if err := b.plane.outputFrom(ctx, n.cfg.Name, 8, false, 0, &out); !errors.Is(err, errUnknownExecution) {
			t.Errorf("output of an unknown execution from %s: %v", n.cfg.Name, err)
		}
		if ids, err := n.plane.reportToLeader(ctx, []result{{Execution: 5}, {Execution: 6}}); err != nil || !slices.Equal(ids, []int64{5, 6}) {
			t.Errorf("results from %s: taken %v, %v", n.cfg.Name, ids, err)
		}
	}
	leader.mu.Lock()
	if len(leader.reported) != 6 {
		t.Errorf("the leader has %d results, want 6", len(leader.reported))
	}
	leader.mu.Unlock()

	// Output that is followed comes part by part, until its reader goes.
	following, leave := context.WithCancel(ctx)
	r, pipe := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- a.plane.outputFrom(following, "w", 7, true, 0, pipe) }()
	part := make([]byte, len("printed on w"))
	if _, err := io.ReadFull(r, part); err != nil || string(part) != "printed on w" {
		t.Errorf("followed output: %q, %v", part, err)
	}
	leave()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("followed output ended with %v, want %v", err, context.Canceled)
	}

	for _, refusal := range []error{errStaleTerm, errStaleNumber, errStopping, errQueueFull} {
		w.mu.Lock()
		w.refusal = refusal
		w.mu.Unlock()
		d.Incarnation = w.cfg.Incarnation
		if err := a.plane.dispatchTo(ctx, "w", d); !errors.Is(err, errRefused) || !errors.Is(err, refusal) {
			t.Errorf("dispatch: %v, want refused: %v", err, refusal)
		}
	}
	d.Incarnation++
	if err := a.plane.dispatchTo(ctx, "w", d); !errors.Is(err, errRefused) || !errors.Is(err, errOtherIncarnation) {
		t.Errorf("dispatch to another incarnation: %v", err)
	}
	if err := a.plane.dispatchTo(ctx, "nobody", d); !errors.Is(err, errRefused) {
		t.Errorf("dispatch to nobody: %v, want %v", err, errRefused)
	}
	w.kill()
	// A kept-alive connection may have to break first.
	eventually(t, "a dispatch to a node that is gone is surely refused", func() bool { return errors.Is(a.plane.dispatchTo(ctx, "w", d), errRefused) })

	// A node that takes a request and does not answer leaves us in doubt.
	silent := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	silent.TLS = a.plane.tls.Clone()
	silent.StartTLS()
	defer silent.Close()
	broken := record{Name: "s", ID: "id-s", Addr: silent.Listener.Addr().String(), Server: true, Status: memberAlive}
	a.plane.learn(greeting{From: broken}, "")
	if err := a.plane.dispatchTo(ctx, "s", d); err == nil || errors.Is(err, errRefused) {
		t.Errorf("dispatch to a node that breaks off: %v, want an error that is no refusal", err)
	}
}

// A client of any node writes through the leader, and reads its own write there.
func TestPlane_Forward(t *testing.T) {
	nodes := trio(t)
	leader := leaderOf(t, nodes...)
	follower := nodes[(slices.Index(nodes, leader)+1)%3]
	agent := startWorker(t, "w", follower)
	eventually(t, "the agent knows the servers", func() bool { return len(agent.plane.members()) == 4 })
	for i, n := range []*peerNode{follower, agent} {
		for try := range 10 {
			name := fmt.Sprintf("job-%d-%d", i, try)
			r := httptest.NewRequest(http.MethodPost, "/v1/jobs/a%2Fb?x=1", strings.NewReader(name))
			r.Header.Set("Belfry-Actor", "somebody who only says so")
			w := httptest.NewRecorder()
			if err := n.plane.forward(w, r.WithContext(t.Context()), "me", "id-1"); err != nil || w.Code != http.StatusOK {
				t.Fatalf("%v, status %d: %s", err, w.Code, w.Body)
			}
			if want := "me asked POST /v1/jobs/a%2Fb?x=1, id id-1"; w.Body.String() != want {
				t.Errorf("the leader was asked %q, want %q", w.Body, want)
			}
			if n == follower {
				if _, err := n.store.job(name); err != nil {
					t.Errorf("%s is not there after the answer: %v", name, err)
				}
			}
		}
	}
	for _, n := range nodes {
		if n != follower {
			n.kill()
		}
	}
	eventually(t, "without a leader nothing is done", func() bool {
		w := httptest.NewRecorder()
		err := follower.plane.forward(w, httptest.NewRequest(http.MethodPost, "/v1/jobs", strings.NewReader("x")), "me", "id-2")
		return errors.Is(err, errNotLeader)
	})
}

// A server that starts again without --join finds the others by the addresses
// that it wrote down.
func TestPlane_Peers(t *testing.T) {
	a := startPeer(t, "a", 1)
	w := startWorker(t, "w", a)
	eventually(t, "w is bound", func() bool { return w.plane.clusterID() != "" })
	eventually(t, "w has written where a is", func() bool {
		_, err := os.Stat(filepath.Join(w.cfg.Dir, peersFile))
		return err == nil
	})
	w.kill()
	w.cfg.Join = nil
	w.start()
	eventually(t, "w knows a again", func() bool { return len(w.plane.members()) == 2 })
}

// Join addresses are tried at their own pace, and given up if so configured.
func TestJoining(t *testing.T) {
	start := time.Now()
	j := joining{addrs: []string{"a", "b"}, tries: 2, pause: time.Second}
	if got := j.due(start); len(got) != 2 {
		t.Errorf("at the start %v is due", got)
	}
	if got := j.due(start.Add(time.Second / 2)); len(got) != 0 {
		t.Errorf("too early %v is due", got)
	}
	if err := j.note(0); err != nil {
		t.Errorf("given up after one try: %v", err)
	}
	if got := j.due(start.Add(time.Second)); len(got) != 2 {
		t.Errorf("after a pause %v is due", got)
	}
	if err := j.note(0); err == nil {
		t.Error("not given up after two tries")
	}
	if err := j.note(1); err != nil {
		t.Errorf("an answer, and yet: %v", err)
	}
	if err := j.note(0); err != nil {
		t.Errorf("given up after an answer: %v", err)
	}
}

// A server that stood still for an election timeout does not believe that it
// leads, whichever clock noticed.
func TestCluster_NoticePause(t *testing.T) {
	a := startPeer(t, "a", 1)
	leaderOf(t, a)
	a.must(a.cluster.call(t.Context(), func() {
		now := time.Now()
		a.cluster.noticePause(now.Add(-a.cluster.electionTime()/2), now)
		if !a.cluster.raft.status().Leading {
			t.Error("half an election timeout ended the leadership")
		}
		a.cluster.noticePause(now.Add(-a.cluster.electionTime()), now)
		if a.cluster.raft.status().Leading {
			t.Error("a whole one did not")
		}
	}))
	leaderOf(t, a)
	a.must(a.cluster.call(t.Context(), func() {
		now := time.Now()
		a.cluster.noticePause(now, now.Add(time.Hour).Round(0)) // only the wall clock has gone on
		if a.cluster.raft.status().Leading {
			t.Error("an hour on the wall clock did not end the leadership")
		}
	}))
	leaderOf(t, a)
}

// FuzzDecodePacket: whatever comes, decoding does not panic, and what it
// accepts has one form.
func FuzzDecodePacket(f *testing.F) {
	data, err := encodePacket("cluster", []message{
		{Kind: msgAppend, From: server{"a", "1"}, To: server{"b", "2"}, Term: 3, Prev: position{4, 2}, Last: 6, Commit: 4, Entries: []entry{{5, 3, entryCommand, []byte("five")}, {6, 3, entryNoop, nil}}},
		{Kind: msgAppendReply, Match: 6, Hint: position{5, 3}, Reject: true},
		{Kind: msgSnapshot, Voters: []server{{"a", "1"}}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(data[:len(data)-1])
	f.Add([]byte{packetFormat})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		cluster, messages, err := decodePacket(data)
		if err != nil {
			if !errors.Is(err, errFormat) && !errors.Is(err, errMalformed) {
				t.Errorf("unexpected error %v", err)
			}
			return
		}
		again, err := encodePacket(cluster, messages)
		if err != nil {
			t.Fatal(err)
		}
		cluster2, messages2, err := decodePacket(again)
		if err != nil || cluster2 != cluster || !reflect.DeepEqual(normal(messages2), normal(messages)) {
			t.Errorf("%q became %q: %v, then %v, %v", data, again, messages, messages2, err)
		}
	})
}

// normal makes empty what is nil or empty.
func normal(messages []message) []message {
	for i := range messages {
		for k := range messages[i].Entries {
			messages[i].Entries[k].Data = nonNil(messages[i].Entries[k].Data)
		}
		if len(messages[i].Voters) == 0 {
			messages[i].Voters = nil
		}
	}
	return messages
}
