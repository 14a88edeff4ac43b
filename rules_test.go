package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// The simulation of one server's rules. From one seed it drives the real store
// and the real scheduler, one event after the other in one goroutine, on a
// clock of its own: jobs come, change and go; nodes take orders, run, die with
// runs in flight and come back, lose messages, repeat them, deliver them late;
// the server dies between any two steps of a write, or loses and regains its
// office; clocks jump. A ledger keeps account of each log entry, and in the end
// everything is healed and must come to rest with nothing lost.

var (
	rulesSeeds = flag.Int("rules.seeds", 200, "random lives of a server to simulate")
	rulesSeed  = flag.Uint64("rules.seed", 0, "the one seed to simulate; 0 takes the seeds from 1 on")
)

const (
	lifeEvents = 250 // of chaos, in one life
	simJobs    = 7   // names of jobs
	traceLines = 80  // of a trace, that a failure prints
)

// TestRules_Simulation: whatever happens, every tick of an enabled job has one
// outcome, nothing starts twice, nothing that was acknowledged is lost, and
// when all is healed nothing stays unfinished.
func TestRules_Simulation(t *testing.T) {
	if *rulesSeed != 0 {
		simulate(t, *rulesSeed)
		return
	}
	for seed := uint64(1); seed <= uint64(*rulesSeeds); seed++ {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			simulate(t, seed)
		})
	}
}

// TestRules_Deterministic: the same seed is the same life, or a failure could
// not be repeated.
func TestRules_Deterministic(t *testing.T) {
	first, second := simulate(t, 1), simulate(t, 1)
	if diff := cmp.Diff(first, second); diff != "" {
		t.Errorf("the second life of a seed differs from the first (-first +second):\n%s", diff)
	}
}

// simTempDir is where stores of many tests are quick: in memory, if possible.
func simTempDir(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "belfry-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// crash is what a step panics with when the server's process dies in it.
type crash struct{ where string }

// world is one simulated life.
type world struct {
	t     *testing.T
	seed  uint64
	rnd   *rand.Rand
	trace []string
	chaos bool // faults may happen

	// The clocks, in nanoseconds: elapsed never jumps, the leader's wall clock
	// is elapsed + skew.
	elapsed, skew int64
	looked        int64 // wall clock at the leader's last look
	asked         int64 // elapsed at the last question about doubts

	dir    string
	store  *store
	sched  *scheduler
	ctx    context.Context // ends with the office
	leave  context.CancelFunc
	term   uint64
	deaths int // of the server
	nested bool
	marks  []requestMark

	nodes  []*modelNode
	late   []lateDispatch // dispatches that are still on their way
	begun  map[int64]bool // executions that a node has started
	ledger *ledger

	model    map[string]*job   // what was acknowledged; nil: not there
	unsure   map[string][]*job // what else may be there, of writes without an answer
	requests []string          // ids of runs by hand that were acknowledged
	idle     int               // numbers request ids and versions
}

// modelNode is a node: what executor does, without running anything.
type modelNode struct {
	name        string
	local       bool // it is part of the server's process
	tags        map[string]string
	incarnation uint64
	known       uint64 // incarnation of the last heartbeat
	heard       int64  // elapsed at the last heartbeat
	up, reached bool
	term, floor uint64
	taken       map[int64]bool
	running     map[int64]*modelRun
	held        map[int64]*modelHeld
}

type modelRun struct{ started, until int64 } // elapsed

type modelHeld struct {
	result
	since int64 // elapsed; what is a second old is on disk
}

type lateDispatch struct {
	node *modelNode
	d    dispatch
}

// simulate lives one life and returns its trace.
func simulate(t *testing.T, seed uint64) []string {
	w := &world{
		t: t, seed: seed, rnd: rand.New(rand.NewPCG(seed, 0)), chaos: true, dir: simTempDir(t),
		skew: testStart, begun: map[int64]bool{}, ledger: newLedger(), model: map[string]*job{}, unsure: map[string][]*job{},
	}
	defer func() {
		if w.store != nil {
			w.store.close()
		}
	}()
	w.nodes = []*modelNode{{name: "n0", local: true}, {name: "n1", tags: map[string]string{"role": "web"}}, {name: "n2", tags: map[string]string{"role": "web"}}}
	for _, n := range w.nodes {
		n.start(w)
	}
	w.restart()
	for range lifeEvents {
		w.step(w.event)
	}
	w.heal()
	return w.trace
}

func (w *world) logf(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf("%9.3fs %+d: ", float64(w.elapsed)/1e9, (w.skew-testStart)/1e9)+fmt.Sprintf(format, args...))
}

func (w *world) fatalf(format string, args ...any) {
	w.t.Helper()
	tail := w.trace[max(0, len(w.trace)-traceLines):]
	w.t.Fatalf("%s\nthe end of the trace:\n%s\nrepeat it with: go test -run 'TestRules_Simulation$' -rules.seed=%d .",
		fmt.Sprintf(format, args...), strings.Join(tail, "\n"), w.seed)
}

func (w *world) now() int64 { return w.elapsed + w.skew }

// chance is true in percent of all cases while faults may happen.
func (w *world) chance(percent float64) bool { return w.chaos && w.rnd.Float64()*100 < percent }

// step does one thing, in which the server may die or lose its office.
func (w *world) step(do func()) {
	defer func() {
		switch p := recover().(type) {
		case nil:
		case crash:
			w.logf("server dies %s", p.where)
			w.die()
		default:
			panic(p)
		}
		if w.store != nil && w.ctx.Err() != nil {
			w.logf("server is out of office and regains it")
			w.recoverOffice()
		}
	}()
	do()
}

// die ends the server's process, and with it the node that it is.
func (w *world) die() {
	w.leave()
	if err := w.store.close(); err != nil {
		w.fatalf("close: %v", err)
	}
	w.store = nil
	w.nodes[0].crash(w)
	if w.chance(30) {
		w.elapsed += w.rnd.Int64N(int64(3 * time.Minute))
	}
	w.nodes[0].start(w)
	w.restart()
}

// restart opens what the disk holds and takes office.
func (w *world) restart() {
	w.deaths++
	var err error
	if w.store, err = openStore(w.dir); err != nil {
		w.fatalf("open: %v", err)
	}
	if w.deaths%8 == 0 {
		if err := w.store.check(); err != nil {
			w.fatalf("check after a restart: %v", err)
		}
	}
	w.sched = newScheduler(schedulerConfig{Catchup: time.Minute, ExecutionsKept: 15, Timezone: "Europe/Berlin", LostAfter: 30 * time.Second}, w.store, slog.New(slog.NewTextHandler(io.Discard, nil)))
	w.sched.propose, w.sched.nodes, w.sched.start, w.sched.ask = w.propose, w.alive, w.start, w.ask
	w.sched.now = func() time.Time { return timeOf(w.now()) }
	w.sched.chance = w.rnd.Uint64
	w.sched.spawn = func(task func()) { task() }
	w.recoverOffice()
	w.verify()
}

// recoverOffice applies what is in the log and begins a new term.
func (w *world) recoverOffice() {
	w.ctx, w.leave = context.WithCancel(context.Background())
	w.applyAll()
	w.term++
	w.looked, w.marks = w.now(), nil
	w.step(func() {
		if err := w.sched.takeOffice(w.ctx, w.term); err != nil && w.ctx.Err() == nil {
			w.fatalf("taking office: %v", err)
		}
	})
}

// propose is the log: one entry at a time, and death between any two steps.
func (w *world) propose(ctx context.Context, c *command) (applied, error) {
	if err := w.ctx.Err(); err != nil {
		return applied{}, errNotLeader
	}
	if c.Put != nil && w.chance(40) {
		// A tick is decided between the moment a write was computed and the
		// moment it is appended.
		w.meanwhile(func() {
			if wait := w.nextDue() - w.now(); wait > 0 && wait < int64(2*time.Second) {
				w.elapsed += wait
			}
			w.fire()
		})
	}
	for _, cl := range c.Close {
		w.checkClosing(cl)
	}
	if c.Trim != nil && c.Trim.Requests > 0 {
		w.requests = nil // jumps of the only clock here make ten minutes of nothing
	}
	data, err := c.encode()
	if err != nil {
		w.fatalf("encode: %v", err)
	}
	if w.chance(0.7) {
		panic(crash{"before a write"})
	}
	end := w.store.logFirst + uint64(len(w.store.logBytes))
	if err := w.store.persist(nil, []entry{{Index: end, Term: w.term, Kind: entryCommand, Data: data}}); err != nil {
		w.fatalf("persist: %v", err)
	}
	switch {
	case w.chance(0.7):
		panic(crash{"between log and apply"})
	case w.chance(0.5):
		w.leave()
		return applied{}, errUnknown
	}
	res := w.applyAll()
	if w.chance(0.7) {
		panic(crash{"before an answer"})
	}
	if res.Err == errUndecided {
		w.meanwhile(w.fire)
	}
	if c.Close == nil && c.Done == nil && w.chance(5) {
		// The nodes are asked between the moment a run was accepted and the
		// moment it is dispatched.
		w.meanwhile(func() { w.excuse(w.sched.askNodes(w.ctx)) })
	}
	return res, res.Err
}

// meanwhile does what another goroutine of the leader may do at this moment.
func (w *world) meanwhile(do func()) {
	if !w.nested {
		w.nested = true
		defer func() { w.nested = false }()
		do()
	}
}

// checkClosing expects that nothing is closed which its node may still start:
// the process that it was given to is gone, or it is too late or in vain to
// order it again.
func (w *world) checkClosing(c closing) {
	r := w.ledger.started[c.Execution]
	gone := w.ledger.gone(w.store, r.job)
	switch i := slices.IndexFunc(w.nodes, func(n *modelNode) bool { return n.incarnation == c.Incarnation }); {
	case i < 0 || gone || r.ended || c.Outcome == outcomeLost:
	case c.Outcome == outcomeMissed && !w.nodes[i].up: // it took no connection
	case c.Outcome == outcomeMissed && r.cause == causeTick && r.due < w.now()-int64(time.Minute):
	default:
		w.fatalf("execution %d is closed as %s, and the process of %s that it was given to lives", c.Execution, c.Outcome, w.nodes[i].name)
	}
}

// applyAll applies what is persisted, entry by entry, and has the ledger look
// at each.
func (w *world) applyAll() (last applied) {
	for len(w.store.unapplied) > 0 {
		e := w.store.unapplied[0]
		results, err := w.store.apply(e.Index)
		if err != nil {
			w.fatalf("apply: %v", err)
		}
		last = results[0]
		if err := w.ledger.observe(w.store, e, last); err != nil {
			w.fatalf("%v", err)
		}
	}
	return last
}

// look is what the leader does when it wakes.
func (w *world) look() {
	from := timeOf(w.looked)
	w.looked = w.now()
	if err := w.sched.noticeGap(w.ctx, from, timeOf(w.now())); err != nil && w.ctx.Err() == nil {
		w.fatalf("looking at the clock: %v", err)
	}
	w.fire()
}

// fire is fireDue, one part after the other.
func (w *world) fire() {
	m := w.sched.moment()
	jobs, pending, _ := w.sched.popDue(m.now)
	for ids := range slices.Chunk(jobs, 1+w.rnd.IntN(5)) {
		w.excuse(w.sched.fireTicks(w.ctx, m, ids))
	}
	for ids := range slices.Chunk(pending, 1+w.rnd.IntN(5)) {
		w.excuse(w.sched.firePending(w.ctx, m, ids))
	}
}

// excuse accepts errors of a leader that has just lost its office.
func (w *world) excuse(err error) {
	w.t.Helper()
	if err != nil && w.ctx.Err() == nil {
		w.fatalf("the leader fails: %v", err)
	}
}

// pass lets time go by as it does for a leader that is awake.
func (w *world) pass(d int64) {
	for d > 0 {
		hop := min(d, int64(tickSlack))
		if next := w.nextDue() - w.now(); next > 0 && next < hop {
			hop = next
		}
		d -= hop
		w.elapsed += hop
		for _, n := range w.nodes {
			n.work(w)
		}
		w.look()
		if w.elapsed-w.asked >= int64(doubtPause) {
			w.asked = w.elapsed
			w.excuse(w.sched.askNodes(w.ctx))
		}
		if w.ctx.Err() != nil {
			return
		}
	}
}

func (w *world) nextDue() int64 {
	if len(w.sched.queue) == 0 {
		return math.MaxInt64
	}
	return w.sched.queue[0].at
}

// event is one random thing that happens.
func (w *world) event() {
	n := w.nodes[w.rnd.IntN(len(w.nodes))]
	switch p := w.rnd.IntN(100); {
	case p < 45:
		w.pass(w.rnd.Int64N(int64(1500 * time.Millisecond)))
	case p < 60:
		w.put()
	case p < 64:
		w.toggle()
	case p < 67:
		w.remove()
	case p < 75:
		w.run()
	case p < 87:
		n.deliver(w)
	case p < 90:
		w.deliverLate()
	case p < 93 && !n.local:
		w.logf("%s: up %v, reached %v, is restarted or cut off", n.name, n.up, n.reached)
		n.disturb(w)
	case p < 95:
		now := timeOf(w.now())
		marks, err := w.sched.markRequests(w.marks, now)
		w.excuse(err)
		w.marks = marks
		w.excuse(w.sched.trim(w.ctx, expired(marks, now), now, w.rnd.IntN(4) == 0))
	case p < 96:
		panic(crash{"for no reason"})
	case p < 97:
		w.leave()
	case p < 98:
		w.skew += w.rnd.Int64N(int64(2 * time.Hour))
		w.logf("clock jumps ahead")
		w.look()
	case p < 99:
		w.skew -= w.rnd.Int64N(int64(3 * time.Hour))
		w.logf("clock jumps back")
		w.look()
	default:
		w.pass(int64(20 * time.Second))
	}
}

// ---- What clients do

func (w *world) name() string { return fmt.Sprintf("job-%d", w.rnd.IntN(simJobs)) }

func (w *world) request() request {
	w.idle++
	return request{Actor: actorAnonymous, ID: fmt.Sprint("request ", w.idle)}
}

func pick[T any](rnd *rand.Rand, list ...T) T { return list[rnd.IntN(len(list))] }

// randomJob is a new definition for a name.
func (w *world) randomJob(name string) job {
	w.idle++
	j := job{Name: name, Executor: executorShell, Metadata: map[string]string{"version": fmt.Sprint(w.idle)}, Concurrency: pick(w.rnd, concurrencyAllow, concurrencyForbid)}
	j.Schedule = pick(w.rnd, "@every 1s", "@every 2s", "@every 7s", "*/2 * * * * *", "*/5 * * * * *", "0 * * * * *", "30 */10 * * * *", "@manually", "@minutely",
		"@at "+timeOf(w.now()+w.rnd.Int64N(int64(time.Minute))).Format(time.RFC3339))
	j.Retries = pick[uint](w.rnd, 0, 0, 1, 2)
	j.Tags = pick(w.rnd, nil, map[string]string{"role": "web"}, map[string]string{"role": "web:1"}, map[string]string{"role": "none"}, map[string]string{"own": "n0"})
	j.Ephemeral = w.rnd.IntN(10) == 0
	j.Disabled = w.rnd.IntN(10) == 0
	switch w.rnd.IntN(8) {
	case 0:
		j.ParentJob = w.name()
	case 1:
		j.StartsAt = instant(w.now() + w.rnd.Int64N(int64(time.Minute)))
	case 2:
		j.ExpiresAt = instant(w.now() + w.rnd.Int64N(int64(time.Minute)))
	}
	return j
}

// write does one write of a job and keeps account of what may be there now.
func (w *world) write(name string, after *job, do func() error) {
	w.unsure[name] = append(w.unsure[name], after) // if it gets no answer
	err := do()
	var r refusal
	var bad badInput
	switch {
	case err == nil:
		w.model[name], w.unsure[name] = after, nil
	case errors.As(err, &r) || errors.As(err, &bad) || errors.Is(err, errNotLeader):
		w.unsure[name] = w.unsure[name][:len(w.unsure[name])-1]
	case errors.Is(err, errUnknown):
	default:
		w.fatalf("a write of %s: %v", name, err)
	}
}

func (w *world) put() {
	name := w.name()
	j := w.randomJob(name)
	if old := w.model[name]; old != nil && w.rnd.IntN(3) == 0 {
		kept := *old // only what does not decide when it is due
		kept.Metadata, kept.Retries, kept.Concurrency = j.Metadata, j.Retries, j.Concurrency
		j = kept
	}
	w.write(name, &j, func() error {
		row, _, err := w.sched.put(context.Background(), w.request(), j)
		w.logf("put %s %q disabled=%v parent=%q tags=%v ephemeral=%v %s retries=%d: %v", name, j.Schedule, j.Disabled, j.ParentJob, j.Tags, j.Ephemeral, j.Concurrency, j.Retries, err)
		if err == nil {
			w.logf("  next %v", row.Next)
		}
		return err
	})
}

func (w *world) toggle() {
	name := w.name()
	w.settleUnsure(name)
	after := w.model[name]
	if after != nil {
		turned := *after
		turned.Disabled = !turned.Disabled
		after = &turned
	}
	w.write(name, after, func() error {
		_, _, err := w.sched.toggle(context.Background(), w.request(), name)
		w.logf("toggle %s: %v", name, err)
		return err
	})
}

func (w *world) remove() {
	name := w.name()
	w.write(name, nil, func() error {
		_, _, err := w.sched.delete(context.Background(), w.request(), name)
		w.logf("delete %s: %v", name, err)
		return err
	})
}

// run starts a job by hand, sometimes with a request that was accepted before.
func (w *world) run() {
	req, repeated := w.request(), false
	if len(w.requests) > 0 && w.rnd.IntN(4) == 0 {
		req.ID, repeated = w.requests[w.rnd.IntN(len(w.requests))], true
	}
	name := w.name()
	before := len(w.ledger.started)
	row, res, err := w.sched.runNow(context.Background(), req, name)
	w.logf("run %s %q: started %v, refused %q: %v", name, req.ID, res.Started, res.Refused, err)
	switch {
	case err != nil:
	case repeated && !res.Repeated:
		w.fatalf("request %q was accepted twice", req.ID)
	case repeated && len(w.ledger.started) != before:
		w.fatalf("request %q started something again", req.ID)
	case !repeated && res.Repeated:
		w.fatalf("request %q is new and was taken for a repetition", req.ID)
	case !repeated:
		w.requests = append(w.requests, req.ID)
		if res.Refused == "" && len(res.Started[0]) == 0 {
			w.fatalf("a run of %s by hand was accepted and started nothing", row.Name)
		}
	}
}

// verify compares what is there with what was acknowledged.
func (w *world) verify() {
	for i := range simJobs {
		w.settleUnsure(fmt.Sprintf("job-%d", i))
	}
}

// settleUnsure finds out which of the writes without an answer were done.
func (w *world) settleUnsure(name string) {
	if len(w.ledger.jobs) == 0 || w.ctx.Err() != nil {
		return
	}
	var have *job
	row, err := w.store.job(name)
	switch {
	case err == nil:
		j, err := row.definition()
		if err != nil {
			w.fatalf("%v", err)
		}
		have = &j
	case !errors.Is(err, errNoJob):
		w.fatalf("%v", err)
	}
	want := append([]*job{w.model[name]}, w.unsure[name]...)
	if slices.ContainsFunc(want, func(j *job) bool { return j != nil && j.Ephemeral }) {
		want = append(want, nil) // its success has deleted it
	}
	for _, j := range want {
		if cmp.Equal(have, j, cmpopts.EquateEmpty()) {
			w.model[name], w.unsure[name] = j, nil
			return
		}
	}
	w.fatalf("job %s is %+v, want one of %+v (-want +have)\n%s", name, have, want, cmp.Diff(want[0], have))
}

// ---- What nodes do

// alive are the nodes that have been heard of lately.
func (w *world) alive() []node {
	var list []node
	for _, n := range w.nodes {
		if n.local || w.elapsed-n.heard < int64(nodeFailed) {
			tags := map[string]string{"own": n.name}
			maps.Copy(tags, n.tags)
			list = append(list, node{n.name, n.known, tags})
		}
	}
	return list
}

func (w *world) node(name string) *modelNode {
	i := slices.IndexFunc(w.nodes, func(n *modelNode) bool { return n.name == name })
	return w.nodes[i]
}

var errUnreached = errors.New("no answer")

// start carries a dispatch to a node: or not, or later, or without the answer.
func (w *world) start(name string, d dispatch) error {
	n := w.node(name)
	switch {
	case w.chance(0.5):
		panic(crash{"before a dispatch"})
	case n.local:
		return n.refuse(w, d)
	case !n.up:
		return fmt.Errorf("%w: no connection", errRefused)
	case !n.reached || w.chance(3):
		return errUnreached
	case w.chance(3):
		w.late = append(w.late, lateDispatch{n, d})
		return errUnreached
	}
	if err := n.refuse(w, d); err != nil || !w.chance(3) {
		return err
	}
	return errUnreached
}

// refuse is take with errors that say so.
func (n *modelNode) refuse(w *world, d dispatch) error {
	if err := n.take(w, d); err != nil {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	return nil
}

func (w *world) deliverLate() {
	if len(w.late) == 0 {
		return
	}
	i := w.rnd.IntN(len(w.late))
	l := w.late[i]
	w.late = slices.Delete(w.late, i, i+1)
	if l.node.up {
		w.logf("%s: a late dispatch arrives: %v", l.node.name, l.node.take(w, l.d))
	}
}

func (w *world) ask(name string, q question) (answer, error) {
	n := w.node(name)
	if !n.up || !n.local && (!n.reached || w.chance(5)) {
		return answer{}, errUnreached
	}
	if q.Term < n.term {
		return answer{}, errStaleTerm
	}
	n.hear(q.Term, q.Number)
	a := answer{Incarnation: n.incarnation}
	for _, id := range q.Executions {
		if n.running[id] != nil {
			a.Running = append(a.Running, id)
		} else if h := n.held[id]; h != nil {
			a.Held = append(a.Held, h.result)
		}
	}
	w.logf("%s is asked for %v: runs %v, holds %d", name, q.Executions, a.Running, len(a.Held))
	return a, nil
}

func (n *modelNode) hear(term, floor uint64) {
	if term > n.term {
		n.term, n.floor = term, 0
	}
	n.floor = max(n.floor, floor)
}

// start begins a new process of the node. What it held on disk it holds again.
func (n *modelNode) start(w *world) {
	n.incarnation = w.rnd.Uint64() | 1
	n.up, n.reached, n.term, n.floor = true, true, 0, 0
	n.taken, n.running = map[int64]bool{}, map[int64]*modelRun{}
	if n.held == nil {
		n.held = map[int64]*modelHeld{}
	}
	for id := range n.held {
		n.taken[id] = true
	}
	n.known, n.heard = n.incarnation, w.elapsed
}

// crash loses what runs, and results that had no time to reach the disk.
func (n *modelNode) crash(w *world) {
	n.up = false
	for _, id := range slices.Sorted(maps.Keys(n.held)) {
		if w.elapsed-n.held[id].since < int64(diskAfter) {
			delete(n.held, id)
		}
	}
}

func (n *modelNode) disturb(w *world) {
	switch {
	case !n.up:
		n.start(w)
	case w.rnd.IntN(2) == 0:
		n.reached = !n.reached
	default:
		n.crash(w)
		if w.rnd.IntN(2) == 0 {
			heard, known := n.heard, n.known
			n.start(w)
			n.heard, n.known = heard, known // the leader does not know yet
		}
	}
}

// take is executor.start.
func (n *modelNode) take(w *world, d dispatch) error {
	switch {
	case d.Term < n.term:
		return errStaleTerm
	case d.Incarnation != n.incarnation:
		n.hear(d.Term, 0)
		return errOtherIncarnation
	}
	n.hear(d.Term, 0)
	if d.Number < n.floor {
		return errStaleNumber
	}
	for _, o := range d.Orders {
		if !n.taken[o.Execution] {
			n.taken[o.Execution] = true
			n.begin(w, o)
		}
	}
	return nil
}

// begin starts a run and expects that nobody has started it before, and that
// it is on record as what its order says.
func (n *modelNode) begin(w *world, o order) {
	w.logf("%s: begins %d of %s, attempt %d, due %d", n.name, o.Execution, o.Job, o.Attempt, o.ScheduledAt)
	if w.begun[o.Execution] {
		w.fatalf("execution %d of %s starts a second time, on %s", o.Execution, o.Job, n.name)
	}
	w.begun[o.Execution] = true
	r, ok := w.ledger.started[o.Execution]
	if !ok || r.ended {
		w.fatalf("execution %d of %s starts on %s, but on record it has %+v", o.Execution, o.Job, n.name, r)
	}
	if got, want := (startedRun{job: r.job, group: o.Group, due: o.ScheduledAt, slot: r.slot, attempt: o.Attempt, cause: r.cause}), r; got != want {
		w.fatalf("execution %d of %s is ordered as %+v, want %+v", o.Execution, o.Job, got, want)
	}
	for id, other := range w.ledger.started {
		if id != o.Execution && other.group == r.group && other.slot == r.slot && other.attempt == r.attempt {
			w.fatalf("execution %d is attempt %d of slot %d, and so is %d", o.Execution, r.attempt, r.slot, id)
		}
	}
	length := w.rnd.Int64N(int64(4 * time.Second))
	if !w.chaos {
		length /= 20
	}
	n.running[o.Execution] = &modelRun{started: w.elapsed, until: w.elapsed + length}
}

// work ends runs whose time has come, sends a heartbeat, and delivers.
func (n *modelNode) work(w *world) {
	if !n.up {
		return
	}
	for _, id := range slices.Sorted(maps.Keys(n.running)) {
		r := n.running[id]
		if r.until > w.elapsed {
			continue
		}
		outcome := outcomeSuccess
		if w.chance(30) {
			outcome = outcomeFailed
		}
		delete(n.running, id)
		n.held[id] = &modelHeld{result{Execution: id, Started: r.started + w.skew, Finished: r.until + w.skew, Outcome: outcome, Output: []byte(outcome)}, w.elapsed}
		w.logf("%s: %d ends: %s", n.name, id, outcome)
	}
	if n.reached && !w.chance(20) {
		n.known, n.heard = n.incarnation, w.elapsed
	}
	if !w.chance(60) {
		n.deliver(w)
	}
}

// deliver hands some results to the leader. The acknowledgement may be lost.
func (n *modelNode) deliver(w *world) {
	if !n.up || !n.reached && !n.local || len(n.held) == 0 || w.ctx.Err() != nil {
		return
	}
	ids := slices.Sorted(maps.Keys(n.held))
	w.rnd.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	var batch []result
	for _, id := range ids[:1+w.rnd.IntN(len(ids))] {
		batch = append(batch, n.held[id].result)
		if w.chance(3) {
			batch = append(batch, n.held[id].result)
		}
	}
	taken, err := w.sched.report(w.ctx, batch)
	w.excuse(err)
	if !n.local && w.chance(10) {
		return
	}
	for _, id := range taken {
		delete(n.held, id)
	}
}

// ---- The end

// heal ends all faults and expects that everything comes to rest: first with
// the jobs going on, then with all of them disabled.
func (w *world) heal() {
	w.logf("all is healed")
	w.chaos, w.late = false, nil
	for _, n := range w.nodes {
		if !n.up {
			n.start(w)
		}
		n.reached = true
	}
	w.step(func() { w.pass(int64(10 * time.Second)) })
	w.verify()
	for i := range simJobs {
		name := fmt.Sprintf("job-%d", i)
		if j := w.model[name]; j != nil && !j.Disabled {
			row, _, err := w.sched.toggle(context.Background(), w.request(), name)
			if err != nil && !j.Ephemeral {
				w.fatalf("disabling %s: %v", name, err)
			}
			if err == nil && !row.Disabled {
				w.fatalf("toggling %s, which was enabled, made it %+v", name, row)
			}
		}
	}
	w.step(func() { w.pass(int64(retryWaitMax + 10*time.Second)) })
	if rows, err := w.store.unfinishedExecutions(); err != nil || len(rows) > 0 {
		w.fatalf("unfinished although all is healed: %+v, %v", rows, err)
	}
	if rows, err := w.store.pending(0); err != nil || len(rows) > 0 {
		w.fatalf("pending although all is healed: %+v, %v", rows, err)
	}
	for _, n := range w.nodes {
		if len(n.running)+len(n.held) > 0 {
			w.fatalf("%s still runs or holds something: %v %v", n.name, n.running, n.held)
		}
	}
	if err := w.ledger.settled(w.store, w.now()); err != nil {
		w.fatalf("%v", err)
	}
	if err := w.store.check(); err != nil {
		w.fatalf("%v", err)
	}
}
