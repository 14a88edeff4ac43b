package main

// The node's side of a run: taking orders from the leader, running them, and answering for them. This file knows no
// schedules, no SQL and no cluster; it is told what to run and hands back results.
//
// Rules that always hold (DESIGN 3.4 to 3.9):
//
//  1. An execution id starts at most once in the life of a process: ids taken are remembered until it ends.
//  2. A term below the highest seen is refused, and so is a dispatch for another incarnation. Within a term a dispatch is
//     refused if its number is below that of a question or kill already answered: whoever was told "not here" can rely on it.
//  3. An execution that was taken is running or held, from the order until its result is acknowledged. It goes from one to
//     the other in one step, so no question can fall between.
//  4. What a former process left running is ended, and the results that it left on disk are held, before the first answer.
//
// Goroutines. A worker runs one execution after the other, and owns each from its start to its result: for a process it
// reads the output, watches the limits and reaps it. Who wants a run to end only tells it so (run.end). Orders wait in a
// lane, one for processes and one for requests; a lane starts few at a time, see lane. Two more goroutines live in run: one
// delivers results, one writes to disk what nobody takes. stop waits for the workers, the caller of run for the other two.
//
// Locks. executor.mu guards the books, run.mu how one run ends, tail.mu its output; tail.mu may be taken under executor.mu,
// otherwise each stands alone. None is held over I/O. run.mu is held over signals and reaping, which must not interleave.

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"log/syslog"
	"maps"
	"math"
	"net/http"
	"net/http/httputil"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// outputBytesMax is how much of an output is kept, its end; the same as in Dkron.
	outputBytesMax = 256_000
	// outputGapBytes is the room that a full output buffer has in addition, so that it can be read while it is written;
	// also the size of the largest read.
	outputGapBytes = 16 << 10

	// reasonBytesMax bounds the reason in front of it; errors quote what the job says, which may be long.
	reasonBytesMax = 4_000

	// queuedMax bounds the orders that wait on a node: ten times the largest burst we design for, about 50 MB. A dispatch
	// above it is refused as a whole, and the leader dispatches again after its next question.
	queuedMax = 100_000
	// processesMax and requestsMax bound what runs at once; more waits in the lane. A process costs two descriptors and
	// one of the 32,768 process ids of a Linux host with default limits, a request one descriptor. Hosts that allow few
	// descriptors get less, see newExecutor.
	processesMax = 4_000
	requestsMax  = 8_000
	// A start slot is given back when the run ends, or this long after the process was started or the request begun. So slow
	// runs start at a rate of slots by time: 10,700 requests a second; processes are forked one by one anyway.
	requestStarts        = 64
	requestStartTime     = 6 * time.Millisecond
	processStartsPerCore = 4
	processStartTime     = 3 * time.Millisecond

	// killGrace is the time between the signals TERM and KILL.
	killGrace = 5 * time.Second
	// lookFirst and lookMax are the first and the longest time between two looks at a process: whether its main process
	// ended while children hold its output open, and whether a limit is passed. lookMax must stay below killGrace.
	lookFirst = 5 * time.Millisecond
	lookMax   = time.Second
	// exitFirst is the first look after a process closed its output, which nearly always means that it is about to exit.
	exitFirst = 20 * time.Microsecond
	// drainMax is how long a reader waits for the rest of an output when the process group is gone: only a process that
	// left the group can still hold it open.
	drainMax = 250 * time.Millisecond
	// leftoverMax bounds the wait for processes that a former process left behind; one in an uninterruptible system call
	// must not keep the node from starting.
	leftoverMax = 5 * time.Second
	// memoryAge is how old the table of resident memory may get before a look reads /proc again.
	memoryAge = 500 * time.Millisecond

	// requestTimeout is the timeout of a request whose job does not say one, or none that can be read.
	requestTimeout = 30 * time.Second
	// requestTimeoutMax, 34 years in seconds, keeps a timeout from overflowing a time.Duration.
	requestTimeoutMax = 1 << 30
	// idlePerHostMax and idleMax bound the connections kept open: twice what fast endpoints need at once, and so many hosts.
	idlePerHostMax = 2 * requestStarts
	idleMax        = 1_024
	idleTime       = 30 * time.Second
	// transportsMax bounds the cached sets of TLS settings; each has its own connections.
	transportsMax = 32

	// reportResultsMax and reportBytesMax bound one delivery, so that it fits a request body and an entry of the log; a
	// single result may be larger than the second.
	reportResultsMax = 1_000
	reportBytesMax   = 512_000
	// reportPause is the least time between two deliveries: results of a burst share a call.
	reportPause = 2 * time.Millisecond
	// reportRetryFirst doubles up to reportRetryMax while nobody takes results.
	reportRetryFirst = 100 * time.Millisecond
	reportRetryMax   = 5 * time.Second
	// diskAfter is the age at which a result that nobody took is written to disk; keepEvery how often that is looked at.
	diskAfter = time.Second
	keepEvery = 250 * time.Millisecond

	// syslogBytesMax is the longest message given to syslog (RFC 5424 asks receivers for 2,048); longer lines are cut up.
	syslogBytesMax = 1_900
)

// Outcomes of an execution, in results and in the store.
const (
	outcomeSuccess     = "success"
	outcomeFailed      = "failed"
	outcomeKilled      = "killed"
	outcomeInterrupted = "interrupted" // the node stopped or died under it: a failure
	outcomeLost        = "lost"        // never said by a node: the leader gave up waiting
)

// stopReason is the reason of runs that stop interrupted.
const stopReason = "the node stopped"

// Executors that a job can name.
const (
	executorShell = "shell"
	executorHTTP  = "http"
)

var (
	// errStaleTerm answers an order, question or kill of a leader that has a successor.
	errStaleTerm = errors.New("the term is over: this node has heard from a later leader")
	// errOtherIncarnation answers a dispatch that was meant for a former process of this node.
	errOtherIncarnation = errors.New("the dispatch is for another incarnation of this node")
	// errStaleNumber answers a dispatch that was overtaken by a question or a kill.
	errStaleNumber = errors.New("the dispatch is older than a question or kill that this node has answered")
	// errStopping answers a dispatch once the node stops.
	errStopping = errors.New("the node is stopping")
	// errQueueFull answers a dispatch that would not fit in the queue; nothing of it was taken.
	errQueueFull = errors.New("the node has too many orders waiting")
	// errUnknownExecution answers a kill or a request for output of an execution that this incarnation neither runs nor holds.
	errUnknownExecution = errors.New("the execution is not known to this node")
)

// An order tells a node to start one execution.
type order struct {
	Execution   int64                        `json:"execution"`
	Job         string                       `json:"job"`
	Group       int64                        `json:"group"`
	Attempt     int                          `json:"attempt"`      // from 1
	ScheduledAt int64                        `json:"scheduled_at"` // Unix nanoseconds: when the tick fell due or the run was asked for
	Executor    string                       `json:"executor"`
	Config      map[string]string            `json:"config"`
	Processors  map[string]map[string]string `json:"processors,omitempty"`
}

// A dispatch is all that a leader has for one node at a time. Number grows with each dispatch, question and kill of a term.
type dispatch struct {
	Term        uint64  `json:"term"`
	Number      uint64  `json:"number"`
	Incarnation uint64  `json:"incarnation"`
	Orders      []order `json:"orders"`
}

// A question asks a node what became of executions.
type question struct {
	Term       uint64  `json:"term"`
	Number     uint64  `json:"number"`
	Executions []int64 `json:"executions"`
	All        bool    `json:"all"` // also all else that it runs or holds
}

// An answer is the node's own word. What the question named and is in neither list is unknown to this incarnation.
type answer struct {
	Incarnation uint64   `json:"incarnation"`
	Running     []int64  `json:"running"`
	Held        []result `json:"held"`
}

// A kill asks a node to end one execution.
type kill struct {
	Term      uint64 `json:"term"`
	Number    uint64 `json:"number"`
	Execution int64  `json:"execution"`
	Why       string `json:"why"` // one sentence, the first line of the output
}

// A result is the final report of an execution. Nobody changes it once it is made.
type result struct {
	Execution int64  `json:"execution"`
	Started   int64  `json:"started"`  // Unix nanoseconds
	Finished  int64  `json:"finished"` // Unix nanoseconds, not before Started
	Outcome   string `json:"outcome"`
	Output    []byte `json:"output,omitempty"`  // at most outputBytesMax
	Dropped   int64  `json:"dropped,omitempty"` // bytes of the output that came before those kept
}

// executorConfig is what main knows about the node. All fields are required.
type executorConfig struct {
	Node    string // name
	NodeID  string // random id of the data directory: marks the processes of this node
	DataDir string // results are kept in its subdirectory "results"
	Log     *slog.Logger

	// Report delivers results to the leader and returns the executions whose results are safe there. It must return when
	// ctx ends. Called by one goroutine at a time; the results are shared and must not be changed.
	Report func(ctx context.Context, results []result) (taken []int64, err error)
}

// executor runs what the leader orders. Its methods may be called by any goroutine.
type executor struct {
	cfg     executorConfig // fixed
	inc     uint64         // fixed: the incarnation
	dir     string         // fixed: where results are kept
	base    []string       // fixed: the environment that processes inherit
	devNull *os.File       // fixed: standard input of processes without a payload
	client  transports     // guards itself
	memory  memoryTable    // guards itself
	workers sync.WaitGroup // running workers; Add only under mu and while a worker lives or stopping is false
	news    chan struct{}  // holds a token when results were added to due
	drained chan struct{}  // closed when stopping and nothing runs

	mu        sync.Mutex
	term      uint64          // highest term seen
	floor     uint64          // number of the latest question or kill answered in term
	taken     idSet           // every execution taken by this process
	runs      map[int64]*run  // taken and not finished
	held      map[int64]*held // finished and not acknowledged
	due       []int64         // held executions to be delivered, oldest first; may name some that are no longer held
	processes lane
	requests  lane
	stopping  bool
}

// held is a finished execution that nobody has acknowledged. Its fields are guarded by executor.mu.
type held struct {
	result     // without Output once stored
	size   int // bytes of output
	since  time.Time
	stored bool // the output is in its file only
}

// newExecutor ends what a former process of this node left running, reads the results that it left on disk, and returns
// an executor that is ready for orders. Results are delivered only while run runs.
func newExecutor(cfg executorConfig) (*executor, error) {
	if cfg.NodeID == "" {
		return nil, errors.New("executor: the node has no id")
	}
	e := &executor{
		cfg:     cfg,
		inc:     newIncarnation(),
		dir:     filepath.Join(cfg.DataDir, "results"),
		news:    make(chan struct{}, 1),
		drained: make(chan struct{}),
		taken:   idSet{},
		runs:    map[int64]*run{},
		held:    map[int64]*held{},
		base:    inheritedEnvironment(os.Environ()),
	}
	files := descriptorLimit()
	e.processes = lane{startsMax: processStartsPerCore * runtime.GOMAXPROCS(0), runningMax: int(min(processesMax, files/5))}
	e.requests = lane{startsMax: requestStarts, runningMax: int(min(requestsMax, files*2/5))}

	e.endLeftovers()
	if err := os.MkdirAll(e.dir, 0o700); err != nil {
		return nil, fmt.Errorf("executor: %w", err)
	}
	if err := e.readResults(); err != nil {
		return nil, fmt.Errorf("executor: %w", err)
	}
	var err error
	if e.devNull, err = os.Open(os.DevNull); err != nil {
		return nil, fmt.Errorf("executor: %w", err)
	}
	return e, nil
}

func newIncarnation() uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint64(b[:]) | 1
}

// descriptorLimit returns how many files this process may have open.
func descriptorLimit() uint64 {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 1_024
	}
	return uint64(l.Cur)
}

// incarnation is random, made at each start, never zero.
func (e *executor) incarnation() uint64 { return e.inc }

// running returns the number of executions that were taken and have not finished, those that wait included.
func (e *executor) running() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.runs)
}

// undelivered returns the number of results that nobody has acknowledged.
func (e *executor) undelivered() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.held)
}

// start takes all orders of d, or none if it returns an error: errStaleTerm, errOtherIncarnation, errStaleNumber,
// errStopping or errQueueFull. An execution that was taken before is passed over. It does not wait for anything to run.
func (e *executor) start(d dispatch) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.hearLocked(d.Term, 0); err != nil {
		return err
	}
	switch {
	case d.Incarnation != e.inc:
		return errOtherIncarnation
	case d.Number < e.floor:
		return errStaleNumber
	case e.stopping:
		return errStopping
	case len(e.processes.queue)+len(e.requests.queue)+len(d.Orders) > queuedMax:
		return errQueueFull
	}
	for _, o := range d.Orders {
		if !e.taken.add(o.Execution) {
			continue
		}
		r := &run{order: o, waiting: true}
		e.runs[o.Execution] = r
		l := e.laneOf(o)
		l.queue = append(l.queue, r)
	}
	e.fillLocked(&e.processes)
	e.fillLocked(&e.requests)
	return nil
}

// hearLocked takes note of a leader's term, and of the number if it is one that later dispatches must not fall below.
func (e *executor) hearLocked(term, floor uint64) error {
	if term < e.term {
		return errStaleTerm
	}
	if term > e.term {
		e.term, e.floor = term, 0
	}
	e.floor = max(e.floor, floor)
	return nil
}

// ask answers a question. Held results come with their output as far as one delivery goes; a held result beyond that is
// listed as running: the leader waits, and takes it from a delivery or a later answer. The only error is errStaleTerm.
func (e *executor) ask(q question) (answer, error) {
	a := answer{Incarnation: e.inc}
	var found []held
	e.mu.Lock()
	if err := e.hearLocked(q.Term, q.Number); err != nil {
		e.mu.Unlock()
		return answer{}, err
	}
	ids := q.Executions
	if q.All {
		ids = slices.Concat(ids, slices.Collect(maps.Keys(e.runs)), slices.Collect(maps.Keys(e.held)))
		slices.Sort(ids)
		ids = slices.Compact(ids)
	}
	size := 0
	for _, id := range ids {
		h := e.held[id]
		switch {
		case e.runs[id] != nil:
			a.Running = append(a.Running, id)
		case h == nil:
		case len(found) == reportResultsMax || len(found) > 0 && size+h.size > reportBytesMax:
			a.Running = append(a.Running, id)
		default:
			found, size = append(found, *h), size+h.size
		}
	}
	e.mu.Unlock()
	for _, h := range found {
		a.Held = append(a.Held, e.load(h))
	}
	return a, nil
}

// kill ends an execution: a process group by TERM, after killGrace by KILL, a request by cancelling it, one that waits at
// once. It does not wait for the end. Of an execution that has finished and is held nothing is left to kill: its result
// is on its way. Errors are errStaleTerm and errUnknownExecution.
func (e *executor) kill(k kill) error {
	e.mu.Lock()
	if err := e.hearLocked(k.Term, k.Number); err != nil {
		e.mu.Unlock()
		return err
	}
	r, isHeld := e.runs[k.Execution], e.held[k.Execution] != nil
	if r != nil && r.waiting {
		e.cancelLocked(r, outcomeKilled, k.Why)
		r = nil
		isHeld = true
	}
	e.mu.Unlock()
	switch {
	case r != nil:
		r.end(outcomeKilled, k.Why, killGrace)
	case !isHeld:
		return errUnknownExecution
	}
	return nil
}

// acknowledge forgets results that are durable with the leader, and their files.
func (e *executor) acknowledge(executions []int64) {
	var files []int64
	e.mu.Lock()
	for _, id := range executions {
		if h := e.held[id]; h != nil && h.stored {
			files = append(files, id)
		}
		delete(e.held, id)
	}
	e.mu.Unlock()
	for _, id := range files {
		e.removeFile(id)
	}
}

// output writes what an execution has printed, from the byte with the offset from on, or from the oldest that is kept. With
// follow it goes on until the run ends. Of a finished execution that is still held it writes the output of its result, whose
// first line may be the reason of a failure. Errors are errUnknownExecution, that of ctx, and those of w.
func (e *executor) output(ctx context.Context, execution int64, follow bool, from int64, w io.Writer) error {
	e.mu.Lock()
	r := e.runs[execution]
	var h held
	found := e.held[execution]
	if found != nil {
		h = *found
	}
	e.mu.Unlock()
	switch {
	case r != nil:
		return r.out.copyTo(ctx, w, from, follow)
	case found == nil:
		return errUnknownExecution
	}
	res := e.load(h)
	skip := min(max(from-res.Dropped, 0), int64(len(res.Output)))
	_, err := w.Write(res.Output[skip:])
	return err
}

// stop refuses new orders, waits up to grace until nothing runs, then ends what still does as interrupted. It returns when
// nothing runs. The results are delivered by run, which must go on until undelivered is zero or patience ends.
func (e *executor) stop(grace time.Duration) {
	e.mu.Lock()
	if !e.stopping {
		e.stopping = true
		e.drainLocked()
	}
	e.mu.Unlock()

	patience := time.NewTimer(grace)
	defer patience.Stop()
	select {
	case <-e.drained:
	case <-patience.C:
		for _, r := range e.interruptWaiting() {
			r.end(outcomeInterrupted, stopReason, killGrace)
		}
	}
	<-e.drained
	e.workers.Wait()
	e.client.close()
	e.devNull.Close() // a second call of stop finds it closed, which is as well
}

// interruptWaiting ends the runs that wait and returns those that have begun.
func (e *executor) interruptWaiting() (begun []*run) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, r := range e.runs {
		if r.waiting {
			e.cancelLocked(r, outcomeInterrupted, stopReason)
		} else {
			begun = append(begun, r)
		}
	}
	return begun
}

// drainLocked closes drained if it is time.
func (e *executor) drainLocked() {
	if e.stopping && len(e.runs) == 0 {
		close(e.drained)
	}
}

// idSet is a set of ids, 64 neighbours to an entry. It only grows: a million runs a day take 0.4 MB a day if their ids are
// neighbours, 4 MB if every tenth id is ours.
type idSet map[int64]uint64

// add reports whether id was not in the set before.
func (s idSet) add(id int64) bool {
	bit := uint64(1) << (id & 63)
	old := s[id>>6]
	s[id>>6] = old | bit
	return old&bit == 0
}

// ---- Lanes and workers

// lane is where orders of one kind wait. It hands out start slots, and a run keeps its slot until it ends, but only for a few
// milliseconds. So quick runs follow each other on few slots, which keeps connections, memory and processes few and caches
// warm, while slow ones hold nobody up. All but the bounds is guarded by executor.mu.
type lane struct {
	startsMax  int
	runningMax int

	queue   []*run // oldest first
	starts  int    // slots in use
	running int
}

// run is one execution on this node, from the order to its result.
type run struct {
	order   order       // fixed
	waiting bool        // in a queue; guarded by executor.mu
	out     tail        // guards itself
	slot    *time.Timer // of its worker: gives the start slot away; reset when the run has begun

	mu     sync.Mutex
	ending *ending // why it is to end, nil if nobody said so
	killAt time.Time
	killed bool               // the group has had its KILL
	pid    int                // of the main process and its group, zero before it starts and once it is reaped
	cancel context.CancelFunc // of the request, nil before it starts
	over   bool               // it ended by itself; nothing changes that any more
}

// ending is the outcome and the reason that somebody gave a run.
type ending struct{ outcome, why string }

// end tells a run to end; the first to say so determines its outcome. A process group gets TERM now, and KILL from its
// owner once grace has passed. It does not wait.
func (r *run) end(outcome, why string, grace time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ending != nil || r.over {
		return
	}
	r.ending = &ending{outcome, why}
	r.killAt = time.Now().Add(grace)
	if r.pid != 0 && grace > 0 {
		signalGroup(r.pid, syscall.SIGTERM)
	}
	if r.cancel != nil {
		r.cancel()
	}
}

// worker is one goroutine of a lane.
type worker struct {
	lane *lane
	slot bool // it has a start slot of its lane; guarded by executor.mu
}

// laneOf returns the lane in which an order waits. What no executor runs fails at once and may wait anywhere.
func (e *executor) laneOf(o order) *lane {
	if o.Executor == executorShell {
		return &e.processes
	}
	return &e.requests
}

// fillLocked starts workers for orders that may start.
func (e *executor) fillLocked(l *lane) {
	for l.starts < l.startsMax {
		r := e.nextLocked(l)
		if r == nil {
			return
		}
		l.starts++
		w := &worker{lane: l, slot: true}
		e.workers.Go(func() { e.work(w, r) })
	}
}

// nextLocked takes the next run out of the queue and counts it as running; nil if none may run now.
func (e *executor) nextLocked(l *lane) *run {
	for len(l.queue) > 0 && l.running < l.runningMax {
		r := l.queue[0]
		l.queue[0] = nil
		l.queue = l.queue[1:]
		if r.waiting { // else it was cancelled
			r.waiting = false
			l.running++
			return r
		}
	}
	return nil
}

// work runs r, then others of the lane for as long as the worker has its slot.
func (e *executor) work(w *worker, r *run) {
	slot := time.AfterFunc(math.MaxInt64, func() { e.yield(w) })
	defer slot.Stop()
	for r != nil {
		r.slot = slot
		res := e.execute(r)
		slot.Stop() // if it is too late for that, the next run loses the slot early, which does no harm
		r = e.finish(w, r, res)
	}
}

// yield gives the start slot of a worker, whose run takes long, to another one.
func (e *executor) yield(w *worker) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !w.slot {
		return
	}
	w.slot = false
	w.lane.starts--
	e.fillLocked(w.lane)
}

// finish turns a run into a held result and returns the next run for the worker, nil if it is to end.
func (e *executor) finish(w *worker, r *run, res result) (next *run) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.runs, r.order.Execution)
	e.holdLocked(res)
	w.lane.running--
	if w.slot {
		if next = e.nextLocked(w.lane); next == nil {
			w.slot = false
			w.lane.starts--
		}
	}
	e.fillLocked(w.lane) // the lane may have been waiting for a run to end
	e.drainLocked()
	return next
}

// cancelLocked ends a run that waits. Processors are not for it: it has no output.
func (e *executor) cancelLocked(r *run, outcome, why string) {
	now := time.Now().UnixNano()
	r.waiting = false
	r.out.close()
	delete(e.runs, r.order.Execution)
	e.holdLocked(result{Execution: r.order.Execution, Started: now, Finished: now, Outcome: outcome, Output: []byte(why + "\n")})
	e.drainLocked()
}

// execute runs r to its end.
func (e *executor) execute(r *run) result {
	started := time.Now()
	var err error
	switch r.order.Executor {
	case executorShell:
		err = e.runProcess(r)
	case executorHTTP:
		err = e.runRequest(r)
	case "":
		err = errors.New("the job has no executor: nothing to run")
	case "grpc", "kafka", "nats", "rabbitmq", "gcppubsub", "docker", "ecs":
		err = fmt.Errorf("the executor %q of Dkron is not part of belfry, which has shell and http", r.order.Executor)
	default:
		err = fmt.Errorf("there is no executor %q; belfry has shell and http", r.order.Executor)
	}
	r.mu.Lock()
	r.over = true
	end := r.ending
	r.mu.Unlock()
	r.out.close()

	outcome, reason := outcomeSuccess, ""
	switch {
	case end != nil:
		outcome, reason = end.outcome, end.why
	case err != nil:
		outcome, reason = outcomeFailed, err.Error()
	}
	if reason != "" {
		reason = reason[:min(len(reason), reasonBytesMax)] + "\n"
	}
	// The monotonic clock counts between the two times: a step of the wall clock makes no negative duration.
	res := result{Execution: r.order.Execution, Started: started.UnixNano(), Outcome: outcome}
	res.Finished = res.Started + int64(time.Since(started))
	res.Output, res.Dropped = r.out.final(reason)
	if len(r.order.Processors) > 0 {
		res.Output = e.process(r.order, res.Output)
	}
	return res
}

// executionName is the text id of an execution, in the API and in the environment of a process.
func executionName(id int64, node string) string { return strconv.FormatInt(id, 10) + "-" + node }

// scheduledAt is an order's time as jobs see it: RFC 3339, UTC, with nanoseconds.
func (o *order) scheduledAt() string {
	return time.Unix(0, o.ScheduledAt).UTC().Format(time.RFC3339Nano)
}

// ---- Output

// tail is the output of a run: the newest outputBytesMax bytes of it. The byte with the absolute offset n is at
// buf[n % (outputBytesMax+outputGapBytes)]; buf grows to that size as needed. Only the owner of the run writes, and
// always into bytes that nobody may read, so it holds no lock while it fills them.
type tail struct {
	mu     sync.Mutex
	buf    []byte
	total  int64         // bytes written since the beginning
	closed bool          // no more will come
	more   chan struct{} // closed at the next change; nil while nobody waits
}

// space returns room for the next bytes, never empty. Called by the owner, who says with commit how much of it he filled.
func (t *tail) space() []byte {
	const size = outputBytesMax + outputGapBytes
	at := int(t.total % size)
	if at == len(t.buf) {
		grown := make([]byte, min(max(512, 2*len(t.buf)), size))
		copy(grown, t.buf)
		t.mu.Lock()
		t.buf = grown
		t.mu.Unlock()
	}
	return t.buf[at:min(len(t.buf), at+outputGapBytes)]
}

func (t *tail) commit(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.total += int64(n)
	t.changedLocked()
}

func (t *tail) changedLocked() {
	if t.more != nil {
		close(t.more)
		t.more = nil
	}
}

// close says that no more will come.
func (t *tail) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	t.changedLocked()
}

// Write keeps the end of p. Called by the owner.
func (t *tail) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		n := copy(t.space(), rest)
		t.commit(n)
		rest = rest[n:]
	}
	return len(p), nil
}

// ReadFrom reads until src ends. Called by the owner.
func (t *tail) ReadFrom(src io.Reader) (total int64, err error) {
	for {
		n, err := src.Read(t.space())
		t.commit(n)
		total += int64(n)
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// readPipe reads until the pipe ends (io.EOF) or its deadline passes. It waits without a buffer, so a silent process
// costs none. Called by the owner.
func (t *tail) readPipe(pipe syscall.RawConn) error {
	var n int
	var err error
	read := func(fd uintptr) bool {
		n, err = syscall.Read(int(fd), t.space())
		return err != syscall.EAGAIN
	}
	for {
		if err := pipe.Read(read); err != nil {
			return err
		}
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return err
		case n == 0:
			return io.EOF
		default:
			t.commit(n)
		}
	}
}

// appendFromLocked appends to dst what is kept from the offset from on, at most n bytes, and returns the offset behind it.
func (t *tail) appendFromLocked(dst []byte, from int64, n int) ([]byte, int64) {
	from = max(from, t.total-outputBytesMax, 0)
	end := max(from, min(t.total, from+int64(n)))
	for from < end {
		at := from % (outputBytesMax + outputGapBytes)
		part := t.buf[at:min(int64(len(t.buf)), at+end-from)]
		dst = append(dst, part...)
		from += int64(len(part))
	}
	return dst, end
}

// since returns what is kept from the offset from on.
func (t *tail) since(from int64) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	b, _ := t.appendFromLocked(nil, from, outputBytesMax)
	return b
}

// final returns the reason and behind it as much of the output's end as fits, and the number of bytes left out. Called by
// the owner at the end; the result may share the buffer.
func (t *tail) final(reason string) (output []byte, dropped int64) {
	kept := int(min(t.total, int64(outputBytesMax-len(reason))))
	if reason == "" && kept == int(t.total) {
		return t.buf[:kept], 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	output = append(make([]byte, 0, len(reason)+kept), reason...)
	output, _ = t.appendFromLocked(output, t.total-int64(kept), kept)
	return output, t.total - int64(kept)
}

// copyTo writes what is kept from the offset from on to w, and with follow what comes, until the output is closed.
func (t *tail) copyTo(ctx context.Context, w io.Writer, from int64, follow bool) error {
	var buf []byte
	for {
		t.mu.Lock()
		buf, from = t.appendFromLocked(buf[:0], from, outputGapBytes)
		last := len(buf) == 0 && (t.closed || !follow)
		if len(buf) == 0 && !last && t.more == nil {
			t.more = make(chan struct{})
		}
		more := t.more
		t.mu.Unlock()
		switch {
		case len(buf) > 0:
			if _, err := w.Write(buf); err != nil {
				return err
			}
		case last:
			return nil
		default:
			select {
			case <-more:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// ---- The executor "shell"

// limits of a process; zero is none.
type limits struct {
	timeout time.Duration
	memory  int64 // bytes, resident, of the whole process group
}

// checkShellConfig says what is wrong with the limits in the executor_config of a shell job. What else may be wrong shows
// when it runs, as in Dkron.
func checkShellConfig(config map[string]string) error {
	_, err := parseLimits(config)
	return err
}

func parseLimits(config map[string]string) (l limits, err error) {
	if s := config["timeout"]; s != "" {
		if l.timeout, err = time.ParseDuration(s); err != nil || l.timeout < 0 {
			return limits{}, fmt.Errorf(`executor_config.timeout: %q is not a duration such as "90s" or "1h30m"`, s)
		}
	}
	if s := config["mem_limit"]; s != "" {
		if l.memory, err = parseBytes(s); err != nil {
			return limits{}, fmt.Errorf(`executor_config.mem_limit: %q is not a size such as "1048576" or "512MB"`, s)
		}
	}
	return l, nil
}

// parseBytes reads a positive size: a decimal number, perhaps with a fraction, and a unit of B, K, KB, M, MB, G, GB, T or
// TB in any case, which are powers of 1,024.
func parseBytes(s string) (int64, error) {
	s = strings.ToUpper(strings.TrimSpace(s))
	digits := strings.TrimRight(s, "BKMGT ")
	unit := strings.TrimSuffix(strings.TrimSpace(s[len(digits):]), "B")
	power := strings.Index("KMGT", unit) // -1 if there is no such unit; KM and the like are refused by their length
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil || strings.Trim(digits, "0123456789.") != "" || power < 0 || len(unit) > 1 {
		return 0, errors.New("not a size")
	}
	if unit != "" {
		n = math.Ldexp(n, 10*(power+1))
	}
	if n < 1 || n > math.MaxInt64/2 {
		return 0, errors.New("not a size")
	}
	return int64(n), nil
}

// runProcess runs the command of r. The error is the reason of a failure, unless run.end was called.
func (e *executor) runProcess(r *run) error {
	lim, err := parseLimits(r.order.Config)
	if err != nil {
		return err
	}
	if lim.memory > 0 && runtime.GOOS != "linux" {
		return errors.New("executor_config.mem_limit works on Linux only")
	}
	pipe, pid, err := e.startProcess(&r.order)
	if err != nil {
		return err
	}
	defer pipe.Close()

	r.slot.Reset(processStartTime)
	r.mu.Lock()
	r.pid = pid
	if r.ending != nil { // told while it started
		signalGroup(pid, syscall.SIGTERM)
	}
	r.mu.Unlock()

	status, err := e.supervise(r, pipe, lim)
	switch {
	case err != nil:
		return err
	case status.Signaled() && status.CoreDump():
		return fmt.Errorf("signal: %v (core dumped)", status.Signal())
	case status.Signaled():
		return fmt.Errorf("signal: %v", status.Signal())
	case status.ExitStatus() != 0:
		return fmt.Errorf("exit status %d", status.ExitStatus())
	}
	return nil
}

// startProcess starts the command of o in a process group of its own, with standard output and error in one pipe.
//
// It uses fork and wait themselves: exec.Cmd blocks a thread of ours for each running process, of which the runtime allows
// 10,000, and cannot look whether a process ended without waiting for it.
func (e *executor) startProcess(o *order) (pipe *os.File, pid int, err error) {
	argv, err := commandWords(o.Config)
	if err != nil {
		return nil, 0, err
	}
	path := argv[0]
	if filepath.Base(path) == path {
		if path, err = exec.LookPath(path); err != nil {
			return nil, 0, err
		}
	}
	attr := syscall.ProcAttr{
		Dir: o.Config["cwd"],
		Env: e.environment(o),
		// Pdeathsig is left out: it is for Linux alone, follows the thread and not the process, and does not reach
		// grandchildren. endLeftovers does what it is for.
		Sys: &syscall.SysProcAttr{Setpgid: true},
	}
	if su := o.Config["su"]; su != "" {
		if attr.Sys.Credential, err = credential(su); err != nil {
			return nil, 0, fmt.Errorf("executor_config.su: %w", err)
		}
	}
	stdin := e.devNull
	if payload := o.Config["payload"]; payload != "" {
		if stdin, err = payloadFile(payload); err != nil {
			return nil, 0, fmt.Errorf("executor_config.payload: %w", err)
		}
		defer stdin.Close()
	}
	pipe, write, err := os.Pipe()
	if err != nil {
		return nil, 0, err
	}
	attr.Files = []uintptr{stdin.Fd(), write.Fd(), write.Fd()}
	pid, err = syscall.ForkExec(path, argv, &attr)
	write.Close()
	if err != nil {
		pipe.Close()
		if _, statErr := os.Stat(attr.Dir); attr.Dir != "" && statErr != nil {
			return nil, 0, fmt.Errorf("executor_config.cwd: %w", statErr)
		}
		return nil, 0, &fs.PathError{Op: "fork/exec", Path: path, Err: err}
	}
	return pipe, pid, nil
}

// supervise reads the output of the process and enforces its limits until its main process has ended; then it ends what
// is left of the process group.
func (e *executor) supervise(r *run, pipe *os.File, lim limits) (syscall.WaitStatus, error) {
	conn, err := pipe.SyscallConn()
	if err != nil {
		return 0, err
	}
	pid, started := r.pid, time.Now()
	memoryAt := started.Add(lookMax)
	for open, wait := true, lookFirst; ; wait = min(2*wait, lookMax) {
		now := time.Now()
		next := now.Add(wait)
		switch timeoutAt := started.Add(lim.timeout); {
		case lim.timeout == 0:
		case now.Before(timeoutAt):
			next = earlier(next, timeoutAt)
		default:
			r.end(outcomeFailed, fmt.Sprintf("execution time exceeded the timeout of %s", lim.timeout), killGrace)
		}
		if lim.memory > 0 && !now.Before(memoryAt) {
			memoryAt = now.Add(lookMax)
			if used := e.memory.resident(pid, now); used > lim.memory {
				r.end(outcomeFailed, fmt.Sprintf("resident memory of %d bytes exceeded the mem_limit of %d bytes", used, lim.memory), 0)
			}
		}
		next = r.killIfDue(now, next)

		if !open {
			time.Sleep(time.Until(next))
		} else {
			pipe.SetReadDeadline(next) // fails only on a closed file, and then so does the read
			if err := r.out.readPipe(conn); !errors.Is(err, os.ErrDeadlineExceeded) {
				open, wait = false, exitFirst
			}
		}
		status, ended, err := r.reap()
		if !ended {
			continue
		}
		endGroup(pid)
		if open {
			pipe.SetReadDeadline(time.Now().Add(drainMax))
			r.out.readPipe(conn) // ends with the last writer or the deadline; either is the end of the output
		}
		return status, err
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// killIfDue sends KILL to a group that was told to end and has had its time. If that lies ahead and before next, it
// returns when it is, else next.
func (r *run) killIfDue(now, next time.Time) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.ending == nil || r.killed:
	case now.Before(r.killAt):
		return earlier(next, r.killAt)
	default:
		r.killed = true
		signalGroup(r.pid, syscall.SIGKILL)
	}
	return next
}

// reap looks whether the main process has ended. From then on no signal goes to its id.
func (r *run) reap() (status syscall.WaitStatus, ended bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		pid, err := syscall.Wait4(r.pid, &status, syscall.WNOHANG, nil)
		switch {
		case err == syscall.EINTR:
			continue
		case err != nil:
			err = fmt.Errorf("how the process ended is not known: %w", os.NewSyscallError("wait4", err))
		case pid == 0:
			return 0, false, nil
		}
		r.pid, r.over = 0, true
		return status, true, err
	}
}

// endGroup kills what is left of a process group whose main process is reaped. The id could by now be that of a new group;
// but ids are given out in turn, so that takes thousands of new processes and not the microseconds in between.
func endGroup(pid int) {
	signalGroup(pid, syscall.SIGKILL)
	// As process 1, of a container, we are the new parent of what was left and have to reap it.
	for deadline := time.Now().Add(drainMax); time.Now().Before(deadline); {
		reaped, err := syscall.Wait4(-pid, nil, syscall.WNOHANG, nil)
		if err == syscall.ECHILD {
			return
		}
		if reaped == 0 {
			time.Sleep(time.Millisecond)
		}
	}
}

// signalGroup signals a process group. It fails only if the group is gone, or if all in it became another user's by a
// set-user-id program; neither leaves anything to do.
func signalGroup(pid int, s syscall.Signal) { syscall.Kill(-pid, s) }

// commandWords returns the program and its arguments.
func commandWords(config map[string]string) ([]string, error) {
	command := config["command"]
	if command == "" {
		return nil, errors.New("executor_config.command is missing")
	}
	if shell, err := strconv.ParseBool(config["shell"]); err == nil && shell {
		return []string{"/bin/sh", "-c", command}, nil
	}
	words, err := splitWords(command)
	if err != nil {
		return nil, fmt.Errorf("executor_config.command: %w", err)
	}
	if len(words) == 0 || words[0] == "" {
		return nil, errors.New("executor_config.command names no program")
	}
	return words, nil
}

// splitWords splits a command into words as a POSIX shell does: blanks separate, quotes and backslashes quote. Nothing is
// expanded, and what else means something to a shell (operators, comments) is text.
func splitWords(s string) ([]string, error) {
	var words []string
	var word []byte
	inWord := false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case ' ', '\t', '\n':
			if inWord {
				words = append(words, string(word))
				word, inWord = word[:0], false
			}
		case '\\':
			if i++; i == len(s) {
				return nil, errors.New("a backslash at the end quotes nothing")
			}
			if s[i] != '\n' { // a quoted newline joins two lines
				word, inWord = append(word, s[i]), true
			}
		case '\'':
			end := strings.IndexByte(s[i+1:], '\'')
			if end < 0 {
				return nil, errors.New("a single quote is not closed")
			}
			word, inWord = append(word, s[i+1:i+1+end]...), true
			i += 1 + end
		case '"':
			inWord = true
			for i++; i < len(s) && s[i] != '"'; i++ {
				if s[i] == '\\' && i+1 < len(s) && strings.IndexByte("$`\"\\\n", s[i+1]) >= 0 {
					if i++; s[i] == '\n' {
						continue
					}
				}
				word = append(word, s[i])
			}
			if i == len(s) {
				return nil, errors.New("a double quote is not closed")
			}
		default:
			word, inWord = append(word, c), true
		}
	}
	if inWord {
		words = append(words, string(word))
	}
	return words, nil
}

// inheritedEnvironment returns what processes inherit of the node's environment: all but the settings of the node, which
// may be secret, and what a process gets from its own order.
func inheritedEnvironment(environ []string) []string {
	return slices.DeleteFunc(environ, func(entry string) bool {
		return strings.HasPrefix(entry, "BELFRY_") || strings.HasPrefix(entry, "DKRON_") || strings.HasPrefix(entry, "ENV_JOB_NAME=")
	})
}

// environment returns the environment of a process: the inherited one, what identifies the run, and the job's own entries
// "K=V,K2=V2". These replace either, except for the two marks by which a leftover process is found.
func (e *executor) environment(o *order) []string {
	env := make([]string, len(e.base), len(e.base)+16)
	copy(env, e.base)
	env = append(env,
		"ENV_JOB_NAME="+o.Job,
		"BELFRY_JOB="+o.Job,
		"BELFRY_SCHEDULED_AT="+o.scheduledAt(),
		"BELFRY_ATTEMPT="+strconv.Itoa(o.Attempt),
		"BELFRY_NODE="+e.cfg.Node,
		"BELFRY_EXECUTION="+executionName(o.Execution, e.cfg.Node),
		nodeIDVariable+"="+e.cfg.NodeID,
	)
	for entry := range strings.SplitSeq(o.Config["env"], ",") {
		name := entry[:strings.IndexByte(entry, '=')+1]
		if name == "" || name == "BELFRY_EXECUTION=" || name == nodeIDVariable+"=" {
			continue
		}
		// Few entries against few dozens: a map would cost more.
		i := slices.IndexFunc(env, func(other string) bool { return strings.HasPrefix(other, name) })
		if i < 0 {
			env = append(env, entry)
		} else {
			env[i] = entry
		}
	}
	return env
}

// payloadFile returns a file without a name that holds the decoded payload. A file needs no goroutine that feeds a pipe.
func payloadFile(payload string) (*os.File, error) {
	data, err := base64.StdEncoding.DecodeString(payload)
	if err != nil {
		return nil, err
	}
	f, err := os.CreateTemp("", "belfry-payload-")
	if err != nil {
		return nil, err
	}
	_, err = f.Write(data)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err := cmp.Or(err, os.Remove(f.Name())); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// credential returns whom to run as: "user" with all its groups, or "user:group" with that group alone.
func credential(su string) (*syscall.Credential, error) {
	name, group, hasGroup := strings.Cut(su, ":")
	u, err := user.Lookup(name)
	if err != nil {
		return nil, err
	}
	gid, groups := u.Gid, []string{}
	if hasGroup {
		g, err := user.LookupGroup(group)
		if err != nil {
			return nil, err
		}
		gid = g.Gid
	} else if groups, err = u.GroupIds(); err != nil {
		return nil, err
	}
	numbers := make([]uint32, 0, 2+len(groups))
	for _, s := range append([]string{u.Uid, gid}, groups...) {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			return nil, err
		}
		numbers = append(numbers, uint32(n))
	}
	return &syscall.Credential{Uid: numbers[0], Gid: numbers[1], Groups: numbers[2:]}, nil
}

// ---- Processes of this node in /proc

// nodeIDVariable marks the processes of a node, their children included.
const nodeIDVariable = "BELFRY_NODE_ID"

// endLeftovers kills the processes that a former process of this node left running, and waits until they are gone. Linux
// alone tells the environment of another process; elsewhere they go on. So does a process that hides its environment, or
// that does not end within leftoverMax.
func (e *executor) endLeftovers() {
	deadline := time.Now().Add(leftoverMax)
	logged := false
	for {
		found := leftovers(e.cfg.NodeID)
		if len(found) == 0 {
			return
		}
		if !logged {
			logged = true
			e.cfg.Log.Warn("ending processes that a former process of this node left running", "pids", found)
		}
		if time.Now().After(deadline) {
			e.cfg.Log.Error("processes of a former process of this node do not end", "pids", found)
			return
		}
		for _, pid := range found {
			// Its group may have members that shed their environment. Our own group is spared: a job may have started us.
			if group, err := syscall.Getpgid(pid); err == nil && group != syscall.Getpgrp() {
				signalGroup(group, syscall.SIGKILL)
			}
			syscall.Kill(pid, syscall.SIGKILL) // fails if it is gone
		}
		time.Sleep(lookFirst)
	}
}

// leftovers returns the processes, other than this one, whose environment names the node.
func leftovers(nodeID string) []int {
	var found []int
	mark := []byte(nodeIDVariable + "=" + nodeID)
	for _, pid := range processIDs() {
		if pid == os.Getpid() {
			continue
		}
		environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil {
			continue // gone, or another user's
		}
		for entry := range bytes.SplitSeq(environ, []byte{0}) {
			if bytes.Equal(entry, mark) {
				found = append(found, pid)
				break
			}
		}
	}
	return found
}

// processIDs returns the ids of all processes; none where there is no /proc.
func processIDs() (ids []int) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1) // processes come and go meanwhile; what was read counts
	for _, name := range names {
		if id, err := strconv.Atoi(name); err == nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// memoryTable is the resident memory of all process groups. All runs with a limit share it, so /proc is read twice a
// second at most, however many they are.
type memoryTable struct {
	mu    sync.Mutex // held while /proc is read: whoever waits wants just that
	at    time.Time
	bytes map[int]int64 // process group → bytes
}

// resident returns the resident memory of a process group, at most memoryAge old. Memory that processes share counts for
// each of them.
func (m *memoryTable) resident(group int, now time.Time) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now.Sub(m.at) > memoryAge {
		m.at, m.bytes = now, map[int]int64{}
		for _, pid := range processIDs() {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if err != nil {
				continue // gone
			}
			if group, pages, ok := parseStat(stat); ok {
				m.bytes[group] += pages * int64(os.Getpagesize())
			}
		}
	}
	return m.bytes[group]
}

// parseStat reads the process group and the resident pages from /proc/PID/stat, see proc_pid_stat(5): fields 5 and 24.
// The second field is the program's name in parentheses, which may contain anything.
func parseStat(stat []byte) (group int, pages int64, ok bool) {
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 22 {
		return 0, 0, false
	}
	group, groupErr := strconv.Atoi(string(fields[2]))
	pages, pagesErr := strconv.ParseInt(string(fields[21]), 10, 64)
	return group, pages, groupErr == nil && pagesErr == nil
}

// ---- The executor "http"

// runRequest makes the request of r. The error is the reason of a failure, unless run.end was called.
func (e *executor) runRequest(r *run) error {
	config := r.order.Config
	timeout := requestTimeout
	if n, err := strconv.Atoi(config["timeout"]); err == nil && n > 0 {
		timeout = time.Duration(min(n, requestTimeoutMax)) * time.Second
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	r.slot.Reset(requestStartTime)
	r.mu.Lock()
	r.cancel = cancel
	if r.ending != nil { // told while it started
		cancel()
	}
	r.mu.Unlock()

	req, err := e.newRequest(ctx, &r.order)
	if err != nil {
		return err
	}
	transport, err := e.client.transport(config)
	if err != nil {
		return err
	}
	debug := config["debug"] != ""
	if debug {
		dump, err := httputil.DumpRequestOut(req, true)
		if err != nil {
			return err
		}
		fmt.Fprintf(&r.out, "%s\n\n", dump)
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return explain(ctx, err, timeout)
	}
	defer resp.Body.Close()
	if debug {
		dump, err := httputil.DumpResponse(resp, false)
		if err != nil {
			return err
		}
		r.out.Write(dump)
	}
	body := r.out.total // only the owner, which we are, changes it
	if _, err := r.out.ReadFrom(resp.Body); err != nil {
		return explain(ctx, err, timeout)
	}
	return checkResponse(config, resp.StatusCode, func() []byte { return r.out.since(body) })
}

// explain makes an error of the standard library say which limit was passed.
func explain(ctx context.Context, err error, timeout time.Duration) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("no complete answer within the timeout of %s", timeout)
	}
	return err
}

// newRequest makes the request that executor_config describes, and adds headers that identify the run, unless the job
// sets them itself. The Idempotency-Key is the same for all attempts of a group on this node.
func (e *executor) newRequest(ctx context.Context, o *order) (*http.Request, error) {
	config := o.Config
	if config["url"] == "" {
		return nil, errors.New("executor_config.url is empty")
	}
	if config["method"] == "" {
		return nil, errors.New("executor_config.method is empty")
	}
	var body io.Reader
	if config["body"] != "" {
		body = strings.NewReader(config["body"])
	}
	req, err := http.NewRequestWithContext(ctx, config["method"], config["url"], body)
	if err != nil {
		return nil, err
	}
	if config["headers"] != "" {
		var headers []string
		if err := json.Unmarshal([]byte(config["headers"]), &headers); err != nil {
			return nil, errors.New(`executor_config.headers is not a JSON array of "Name: value"`)
		}
		for _, h := range headers {
			name, value, ok := strings.Cut(h, ":")
			if !ok {
				return nil, fmt.Errorf(`executor_config.headers: %q is not "Name: value"`, h)
			}
			req.Header.Add(strings.TrimSpace(name), strings.TrimSpace(value))
		}
		req.Host = req.Header.Get("Host") // empty: that of the URL
	}
	for _, h := range [...][2]string{
		{"User-Agent", "belfry"},
		{"Belfry-Job", o.Job},
		{"Belfry-Execution", executionName(o.Execution, e.cfg.Node)},
		{"Belfry-Scheduled-At", o.scheduledAt()},
		{"Belfry-Attempt", strconv.Itoa(o.Attempt)},
		{"Belfry-Node", e.cfg.Node},
		{"Idempotency-Key", o.Job + "/" + strconv.FormatInt(o.Group, 10) + "/" + e.cfg.Node},
	} {
		if len(req.Header[h[0]]) == 0 {
			req.Header[h[0]] = []string{h[1]}
		}
	}
	return req, nil
}

// checkResponse compares a response with what the job expects; of a long body the end that is kept.
func checkResponse(config map[string]string, code int, body func() []byte) error {
	if want := config["expectCode"]; want != "" {
		met := false
		for s := range strings.SplitSeq(want, ",") {
			met = met || strings.TrimSpace(s) == strconv.Itoa(code)
		}
		if !met {
			return errors.New("received response code does not match the expected code") // as upstream, clients look for it
		}
	}
	if want := config["expectBody"]; want != "" {
		re, err := regexp.Compile(want)
		if err != nil {
			return fmt.Errorf("executor_config.expectBody: %w", err)
		}
		if !re.Match(body()) {
			return errors.New("received response body did not match the expected body")
		}
	}
	return nil
}

// transports are the connections of all requests: one set for jobs without TLS settings, and one for each combination of
// settings and versions of the files that they name. The zero value is ready.
type transports struct {
	mu     sync.Mutex
	byKeys map[tlsSettings]*http.Transport
}

// tlsSettings is what makes connections differ. The versions of its files are part of it, so a renewed certificate is
// used from the next request on.
type tlsSettings struct {
	noVerify                              bool
	cert, key, roots                      string // paths
	certVersion, keyVersion, rootsVersion int64  // modification times, Unix nanoseconds
}

// transport returns the connections for a job. It reads certificates when it meets them first.
func (t *transports) transport(config map[string]string) (*http.Transport, error) {
	noVerify, err := strconv.ParseBool(config["tlsNoVerifyPeer"])
	s := tlsSettings{noVerify: noVerify && err == nil, cert: config["tlsCertificateFile"],
		key: config["tlsCertificateKeyFile"], roots: config["tlsRootCAsFile"]}
	s.certVersion, s.keyVersion, s.rootsVersion = fileVersion(s.cert), fileVersion(s.key), fileVersion(s.roots)
	t.mu.Lock()
	found := t.byKeys[s]
	t.mu.Unlock()
	if found != nil {
		return found, nil
	}
	made, err := newTransport(s)
	if err != nil {
		return nil, err
	}

	t.mu.Lock()
	defer t.mu.Unlock()
	if found := t.byKeys[s]; found != nil { // somebody was faster; ours has no connections yet
		return found, nil
	}
	if t.byKeys == nil {
		t.byKeys = map[tlsSettings]*http.Transport{}
	}
	for old, transport := range t.byKeys {
		if len(t.byKeys) < transportsMax {
			break
		}
		// Which one goes does not matter: at worst the next request has to connect again.
		transport.CloseIdleConnections()
		delete(t.byKeys, old)
	}
	t.byKeys[s] = made
	return made, nil
}

// close ends all connections that no request uses.
func (t *transports) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, transport := range t.byKeys {
		transport.CloseIdleConnections()
	}
}

// fileVersion returns the modification time of a file; zero if there is none, whose reader will say why.
func fileVersion(path string) int64 {
	if path == "" {
		return 0
	}
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.ModTime().UnixNano()
}

func newTransport(s tlsSettings) (*http.Transport, error) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConns, t.MaxIdleConnsPerHost, t.IdleConnTimeout = idleMax, idlePerHostMax, idleTime
	t.TLSClientConfig = &tls.Config{InsecureSkipVerify: s.noVerify}
	if s.cert != "" || s.key != "" {
		pair, err := tls.LoadX509KeyPair(s.cert, s.key)
		if err != nil {
			return nil, fmt.Errorf("executor_config.tlsCertificateFile: %w", err)
		}
		t.TLSClientConfig.Certificates = []tls.Certificate{pair}
	}
	if s.roots != "" {
		pem, err := os.ReadFile(s.roots)
		if err != nil {
			return nil, fmt.Errorf("executor_config.tlsRootCAsFile: %w", err)
		}
		t.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("executor_config.tlsRootCAsFile: %s holds no certificate", s.roots)
		}
	}
	return t, nil
}

// ---- Processors

// process passes an output through the processors of the order, in name order, and returns what is to be stored. A
// processor with forward leaves the output as it is, else it leaves a note on where it went. One that fails leaves the
// output with a line about that; one we do not have changes nothing.
func (e *executor) process(o order, output []byte) []byte {
	execution := executionName(o.Execution, e.cfg.Node)
	for _, name := range slices.Sorted(maps.Keys(o.Processors)) {
		settings := o.Processors[name]
		var note string
		var err error
		switch name {
		case "log":
			e.cfg.Log.Info("output of an execution", "job", o.Job, "execution", execution, "output", string(output))
			note = "Output in belfry log"
		case "files":
			note, err = writeOutputFile(settings["log_dir"], execution, output)
		case "syslog":
			note, err = "Output in syslog", writeSyslog(o.Job, output)
		default:
			continue
		}
		if err != nil {
			e.cfg.Log.Warn("a processor failed", "processor", name, "job", o.Job, "err", err)
			output = fmt.Appendf(slices.Clip(output), "\nprocessor %s: %v\n", name, err)
			output = output[max(0, len(output)-outputBytesMax):]
			continue
		}
		if forward, err := strconv.ParseBool(settings["forward"]); err != nil || !forward {
			output = []byte(note)
		}
	}
	return output
}

// writeOutputFile writes an output to a file of its own, and returns a note that names it.
func writeOutputFile(dir, execution string, output []byte) (note string, err error) {
	if dir == "" {
		return "", errors.New("log_dir is missing")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	path := filepath.Join(dir, strings.ReplaceAll(execution, "/", "_")+".log")
	if err := os.WriteFile(path, output, 0o600); err != nil {
		return "", err
	}
	return "Output in " + path, nil
}

// writeSyslog writes an output to the system's log, a message for each line.
func writeSyslog(job string, output []byte) error {
	w, err := syslog.New(syslog.LOG_INFO|syslog.LOG_CRON, "belfry")
	if err != nil {
		return err
	}
	defer w.Close()
	for line := range bytes.Lines(output) {
		for part := range slices.Chunk(bytes.TrimRight(line, "\r\n"), syslogBytesMax) {
			if _, err := fmt.Fprintf(w, "%s: %s", job, part); err != nil {
				return err
			}
		}
	}
	return nil
}

// ---- Held results

// holdLocked adds a result to those that are to be delivered.
func (e *executor) holdLocked(res result) {
	e.held[res.Execution] = &held{result: res, size: len(res.Output), since: time.Now()}
	e.due = append(e.due, res.Execution)
	select {
	case e.news <- struct{}{}:
	default:
	}
}

// run delivers results until ctx ends. Then it writes to disk what nobody took, for the next process.
func (e *executor) run(ctx context.Context) error {
	var keeper sync.WaitGroup
	keeper.Go(func() { e.keep(ctx) })
	e.deliver(ctx)
	keeper.Wait()
	return e.storeOlderThan(0)
}

// deliver reports what is due, one batch after the other.
func (e *executor) deliver(ctx context.Context) {
	retry := time.Duration(0)
	for ctx.Err() == nil {
		batch := e.nextBatch()
		if len(batch) == 0 {
			select {
			case <-e.news:
			case <-ctx.Done():
			}
			continue
		}
		taken, err := e.cfg.Report(ctx, batch)
		e.acknowledge(taken)
		e.putBack(batch)
		pause := reportPause
		if err != nil || len(taken) == 0 {
			if retry == 0 && ctx.Err() == nil {
				e.cfg.Log.Warn("results are not taken; they are kept", "results", len(batch), "err", err)
			}
			retry = min(max(2*retry, reportRetryFirst), reportRetryMax)
			pause = retry
		} else {
			retry = 0
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// nextBatch takes results off the list of those that are due, as many as one delivery may carry.
func (e *executor) nextBatch() []result {
	var batch []held
	size := 0
	e.mu.Lock()
	for len(e.due) > 0 && len(batch) < reportResultsMax {
		h := e.held[e.due[0]]
		if h != nil {
			if len(batch) > 0 && size+h.size > reportBytesMax {
				break
			}
			batch, size = append(batch, *h), size+h.size
		}
		e.due = e.due[1:]
	}
	e.mu.Unlock()
	results := make([]result, len(batch))
	for i, h := range batch {
		results[i] = e.load(h)
	}
	return results
}

// putBack lists again what was not acknowledged, behind the others: what the leader does not take holds up nobody.
func (e *executor) putBack(batch []result) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, res := range batch {
		if e.held[res.Execution] != nil {
			e.due = append(e.due, res.Execution)
		}
	}
}

// keep writes results to disk that nobody takes in time.
func (e *executor) keep(ctx context.Context) {
	ticks := time.NewTicker(keepEvery)
	defer ticks.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
		err := e.storeOlderThan(diskAfter)
		if err != nil && !failing {
			e.cfg.Log.Error("results cannot be kept on disk; they stay in memory", "err", err)
		}
		failing = err != nil
	}
}

// storeOlderThan writes the held results of at least this age to disk and lets go of their outputs. Of several errors it
// returns the first; what it could not write stays in memory.
//
// The files are not synced: a crash of the process does not touch them. After a power cut one may be missing or torn, and
// the leader records "interrupted", as it does for all that ran at that moment; a sync for each would slow down the log of
// a server just when it elects a leader. Their number is bounded by what the last leader had dispatched.
func (e *executor) storeOlderThan(age time.Duration) error {
	now := time.Now()
	var old []result
	e.mu.Lock()
	for _, h := range e.held {
		if !h.stored && now.Sub(h.since) >= age {
			old = append(old, h.result)
		}
	}
	e.mu.Unlock()
	var first error
	for _, res := range old {
		if err := e.writeFile(res); err != nil {
			first = cmp.Or(first, err)
			continue
		}
		e.mu.Lock()
		h := e.held[res.Execution]
		if h != nil {
			h.Output, h.stored = nil, true
		}
		e.mu.Unlock()
		if h == nil { // acknowledged meanwhile
			e.removeFile(res.Execution)
		}
	}
	return first
}

// load returns a held result with its output.
func (e *executor) load(h held) result {
	if !h.stored {
		return h.result
	}
	res, err := readResultFile(e.path(h.Execution))
	if err != nil {
		// Unless it was acknowledged meanwhile, and nobody needs it, the outcome counts more than the output.
		res = h.result
		res.Output = fmt.Appendf(nil, "the output was lost on the node's disk: %v\n", err)
	}
	return res
}

func (e *executor) path(execution int64) string {
	return filepath.Join(e.dir, strconv.FormatInt(execution, 10)+".json")
}

// writeFile writes a result in one step: a crash leaves the whole file, or one with another name that readResults removes.
func (e *executor) writeFile(res result) error {
	data, err := json.Marshal(res)
	if err != nil {
		return err
	}
	path := e.path(res.Execution)
	if err := os.WriteFile(path+".tmp", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

func (e *executor) removeFile(execution int64) {
	if err := os.Remove(e.path(execution)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		// The result is delivered again by the next process, which changes nothing.
		e.cfg.Log.Warn("a delivered result cannot be removed", "err", err)
	}
}

// readResults holds the results that a former process left on disk. A file that is not a result is set aside.
func (e *executor) readResults() error {
	entries, err := os.ReadDir(e.dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		path := filepath.Join(e.dir, entry.Name())
		switch filepath.Ext(path) {
		case ".tmp":
			err = os.Remove(path)
		case ".json":
			res, readErr := readResultFile(path)
			if readErr == nil && path == e.path(res.Execution) {
				e.held[res.Execution] = &held{result: res, size: len(res.Output), stored: true}
				e.held[res.Execution].Output = nil
				e.taken.add(res.Execution)
				e.due = append(e.due, res.Execution)
				continue
			}
			e.cfg.Log.Error("a kept result cannot be read and is set aside", "file", path, "err", readErr)
			err = os.Rename(path, path+".bad")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func readResultFile(path string) (result, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return result{}, err
	}
	return parseResult(data)
}

// parseResult reads what writeFile wrote.
func parseResult(data []byte) (result, error) {
	var res result
	if err := json.Unmarshal(data, &res); err != nil {
		return result{}, err
	}
	switch res.Outcome {
	case outcomeSuccess, outcomeFailed, outcomeKilled, outcomeInterrupted:
	default:
		return result{}, fmt.Errorf("%q is no outcome", res.Outcome)
	}
	if res.Execution <= 0 || res.Finished < res.Started || len(res.Output) > outputBytesMax {
		return result{}, errors.New("not a result")
	}
	return res, nil
}
