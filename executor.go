// Executor owns a node's side of a run: it accepts orders from the leader, runs them, answers questions about them and
// reports their results. It knows no schedules, no SQL and no cluster.
//
// Invariants:
//
//  1. An execution starts at most once in the life of a process: the ids of accepted orders are remembered.
//  2. Messages of a term below the highest seen are refused, and so is a dispatch for another incarnation. Within a
//     term, a dispatch is refused if its number is below that of a question or kill already answered: the answer "not
//     here" stays true.
//  3. An accepted execution is running or held until its result is acknowledged. It changes from running to held in one
//     step, so every question finds it.
//  4. Before the first answer, the open runs of the previous process are killed and its results on disk are held. A
//     process is signalled only while its run is open.
//
// The file follows an order: start accepts it, launchLocked starts it, execute runs it with one of the two executors,
// and deliver reports its result. Each execution has a goroutine, from its start to its result; to end it early, cancel
// its context with the reason as the cause. stop waits for the executions; run waits for the three goroutines that
// deliver results, write undelivered ones to disk, and watch memory.
//
// Locks: executor.mu guards the executor's state and tail.mu one output; neither is held over I/O. executor.procsMu
// limits /proc to one reader at a time.
package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"log/syslog"
	"maps"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"regexp/syntax"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// outputBytesMax bounds the end of an output that is kept, as in Dkron. The buffer grows by outputSlackBytes before
	// the oldest bytes are dropped, so that not every write moves the rest. A run reads outputReadBytes at a time.
	outputBytesMax   = 256_000
	outputSlackBytes = 64 << 10
	outputReadBytes  = 4 << 10
	// printedBytesMax bounds the output of a running execution in a list, printedAllMax a node's whole response for it.
	printedBytesMax = 4_000
	printedAllMax   = 1 << 20
	// reasonBytesMax bounds the reason before an output; errors quote the job's settings, which may be long.
	reasonBytesMax = 4_000
	// syslogBytesMax is the longest message for syslog (RFC 5424 asks receivers for 2,048); longer lines are cut up.
	// syslogMax is the timeout for writing one output.
	syslogBytesMax = 1_900
	syslogMax      = 10 * time.Second

	// queuedMax bounds the orders queued on a node: ten times the largest burst we design for, about 50 MB. A dispatch
	// that exceeds it is refused as a whole, and the leader dispatches again after its next question.
	queuedMax = 100_000
	// processesMax and requestsMax bound how many executions run at once; further ones are queued. A running process
	// needs 30 kB and one of our threads. A Go program that cannot get a thread crashes, so processes, one child of
	// each and our threads stay below the 4,915 tasks that systemd allows a service on a host with 32,768 process ids,
	// and our threads far below the Go runtime's 10,000. With few descriptors the bounds are lower; see newExecutor.
	processesMax = 1_500
	requestsMax  = 8_000
	// At most this many runs are starting at once; a run has started when it ends or after the start time. So quick
	// runs share few connections and processes, and slow ones do not delay others.
	processStarts    = 8
	processStartTime = 4 * time.Millisecond
	requestStarts    = 64
	requestStartTime = 6 * time.Millisecond

	// killGrace is the time between SIGTERM and SIGKILL if the job has no kill_timeout, and the maximum when the node
	// stops. killGraceMax bounds kill_timeout.
	killGrace    = 5 * time.Second
	killGraceMax = 10 * time.Minute
	// outputWait is how long an output may stay open after the first process of its run has ended; drainMax is the time
	// for reading the rest if only processes that are left running hold it open.
	outputWait = 5 * time.Second
	drainMax   = 250 * time.Millisecond
	// unkillableMax is how long to wait after SIGKILL: a process of another user, or in an uninterruptible system call,
	// delays neither its run nor the node for longer.
	unkillableMax = 10 * time.Second
	// detachMax is the time for a newly forked process to start its own session, as a daemon does.
	detachMax = time.Second
	// While processes end, /proc is read after lookFirst, then at growing intervals up to lookMax.
	lookFirst = 5 * time.Millisecond
	lookMax   = 100 * time.Millisecond
	// argumentBytesMax is the longest argument or environment entry that Linux accepts.
	argumentBytesMax = 128<<10 - 1
	// noteBytes is the length of a line in the file of open runs.
	noteBytes = 128
	// memoryEvery is the interval for checking runs with a mem_limit, as upstream.
	memoryEvery = time.Second

	// requestTimeout applies to a request whose job has no timeout, or none that can be read. requestTimeoutMax, 34
	// years in seconds, keeps a longer one from overflowing a time.Duration.
	requestTimeout    = 30 * time.Second
	requestTimeoutMax = 1 << 30
	// redirectsMax is net/http's limit. patternMax bounds the instructions of an expectBody: each costs time per byte.
	redirectsMax = 10
	patternMax   = 2_000
	// tlsBytesMax bounds each file of a job's TLS settings: four times the size of a system's whole set of roots.
	tlsBytesMax = 1 << 20
	// responseHeadMax is in bytes; many short header lines take twenty times as much memory.
	responseHeadMax = 256 << 10
	// idleTimeMax is shorter than servers keep idle connections: a run fails if its connection is closed as it is sent.
	idleTimeMax = 4 * time.Second
	// idlePerHostMax and idleMax bound idle connections: twice what fast endpoints need at once, to that many hosts.
	idlePerHostMax = 2 * requestStarts
	idleMax        = 1_024

	// reportResultsMax and reportBytesMax bound one delivery, so that it fits a request body and a log entry; a single
	// result may exceed the second. reportPause is the minimum between two deliveries, so that a burst shares one.
	reportResultsMax = 1_000
	reportBytesMax   = 512_000
	reportPause      = 2 * time.Millisecond
	// reportRetryFirst doubles up to reportRetryMax while results cannot be delivered.
	reportRetryFirst = 100 * time.Millisecond
	reportRetryMax   = 5 * time.Second
	// diskAfter is the age at which an undelivered result is written to disk; keepEvery is the interval of the check.
	diskAfter = time.Second
	keepEvery = 250 * time.Millisecond
)

// Outcomes of an execution, in results and in the store.
const (
	outcomeSuccess     = "success"
	outcomeFailed      = "failed"
	outcomeKilled      = "killed"
	outcomeInterrupted = "interrupted" // the node stopped or died under it: a failure
	outcomeLost        = "lost"        // never said by a node: the leader gave up waiting
)

// Executors that a job can name.
const (
	executorShell = "shell"
	executorHTTP  = "http"
)

// Refusals of a leader's messages: the first of any, the last of a kill or a request for output, the others of a whole
// dispatch.
var (
	errStaleTerm        = errors.New("the term is over: this node has heard from a later leader")
	errOtherIncarnation = errors.New("the dispatch is for another incarnation of this node")
	errStaleNumber      = errors.New("the dispatch is older than a question or kill that this node has answered")
	errStopping         = errors.New("the node is stopping")
	errQueueFull        = errors.New("the node has too many queued orders")
	errUnknownExecution = errors.New("the execution is not known to this node")
)

// An order tells a node to start one execution.
type order struct {
	Execution   int64                        `json:"execution"`
	Job         string                       `json:"job"`
	Group       int64                        `json:"group"`
	Attempt     int                          `json:"attempt"`      // from 1
	ScheduledAt int64                        `json:"scheduled_at"` // Unix nanoseconds: when it was due or requested
	Executor    string                       `json:"executor"`
	Config      map[string]string            `json:"config"`
	Processors  map[string]map[string]string `json:"processors,omitempty"`
	Timeout     string                       `json:"timeout,omitempty"` // of the job; empty: none
	Params      map[string]string            `json:"params,omitempty"`
}

// A dispatch has a leader's orders for one node. Number grows with each dispatch, question and kill of a term.
type dispatch struct {
	Term        uint64  `json:"term"`
	Number      uint64  `json:"number"`
	Incarnation uint64  `json:"incarnation"`
	Startable   int64   `json:"startable"` // no execution with a lower id is started any more, whoever asks for it
	Orders      []order `json:"orders"`
}

// A question asks a node for the state of executions.
type question struct {
	Term       uint64  `json:"term"`
	Number     uint64  `json:"number"`
	Executions []int64 `json:"executions"`
	All        bool    `json:"all"` // also all else that it runs or holds
}

// An answer is a node's response to a question. Executions in neither list are unknown to this incarnation.
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

// A result is the final report of an execution, and immutable. Node and Incarnation are those of the process that ran
// it; a later process may report it.
type result struct {
	Execution   int64      `json:"execution"`
	Node        string     `json:"node"`
	Incarnation uint64     `json:"incarnation"`
	Started     int64      `json:"started"`  // Unix nanoseconds
	Finished    int64      `json:"finished"` // Unix nanoseconds, not before Started
	Outcome     string     `json:"outcome"`
	Output      []byte     `json:"output,omitempty"`  // at most outputBytesMax
	Reason      int        `json:"reason,omitempty"`  // bytes of the output, its first, that say why the run failed
	Dropped     int64      `json:"dropped,omitempty"` // bytes of the output that came before those kept
	Process     processEnd `json:"process,omitzero"`
}

// check returns errMalformed for a result that no executor produces.
func (r *result) check() error {
	outcomes := []string{outcomeSuccess, outcomeFailed, outcomeKilled, outcomeInterrupted}
	if !slices.Contains(outcomes, r.Outcome) || r.Execution <= 0 || r.Node == "" || r.Finished < r.Started ||
		r.Dropped < 0 || len(r.Output) > outputBytesMax || r.Reason < 0 || r.Reason > len(r.Output) {
		return fmt.Errorf("%w: not a result", errMalformed)
	}
	return nil
}

// processEnd says how the first process of a run ended, and what it and the children that it waited for have used.
type processEnd struct {
	ExitCode *int   `json:"exit_code,omitempty"` // nil: it did not exit by itself
	Signal   string `json:"signal,omitempty"`    // that ended it, as "killed"
	CPU      int64  `json:"cpu,omitempty"`       // nanoseconds
	Memory   int64  `json:"memory,omitempty"`    // resident bytes at the peak of the largest; 0: unknown
}

// executorConfig is what main knows about the node. All fields but Shell and Chance are required.
type executorConfig struct {
	Node    string // name
	NodeID  string // random id of the data directory: marks the processes of this node
	DataDir string // results are kept in its subdirectory "results"
	Log     *slog.Logger
	Limits  nodeLimits // what the node's operator lets jobs do

	// Shell runs an order of the executor "shell" until ctx ends, and writes its output; nil: as a process. Where it is
	// given, what a former process of the node left running is its caller's business.
	Shell  func(ctx context.Context, o *order, out io.Writer) error
	Chance func() uint64 // nil: that of the runtime

	Failures *failureLog // of runs that ended without success; nil: not logged
}

// A reportFunc delivers results to the leader and returns the executions whose results are safe there. It must return
// when ctx ends. Called by one goroutine at a time; the results are shared and must not be changed.
type reportFunc func(ctx context.Context, results []result) (taken []int64, err error)

// executor runs what the leader orders. Its methods are safe for concurrent use.
type executor struct {
	cfg       executorConfig  // fixed
	inc       uint64          // fixed: the incarnation, a random number of this process, never zero
	dir       string          // fixed: where results are kept
	base      []string        // fixed: the environment that processes inherit
	files     *os.Root        // fixed: below it outputs are written
	transport *http.Transport // the connections of requests without TLS settings; guards itself
	news      chan struct{}   // holds a token when results were added to due
	working   sync.WaitGroup  // counts runs; Add only under mu, and never once stopping
	notes     []byte          // the file of open runs, a line for each with a process; set by endLeftovers
	lines     chan int        // those of notes that are free
	uptime    uptime          // guards itself
	limited   sync.Map        // *run → *session: processes with a mem_limit

	mu        sync.Mutex
	term      uint64          // highest term seen
	floor     uint64          // number of the latest question or kill answered in term
	taken     idSet           // every execution taken by this process
	startable int64           // every execution below was taken or will not be begun; see forgetLocked
	kept      int             // entries of taken when it was last looked through
	runs      map[int64]*run  // taken and not finished
	held      map[int64]*held // finished and not acknowledged
	due       []int64         // held executions to be delivered, the next first; may name some that are no longer held
	processes lane
	requests  lane
	stopping  bool
	halted    time.Time // when stop began to end what still ran

	procsMu    sync.Mutex // guards the two below
	procsBegun time.Time
	procsFound []proc // not to be changed
}

// run is one execution on this node, from the order to its result.
type run struct {
	order  order                   // fixed
	lane   *lane                   // fixed
	out    tail                    // guards itself
	cancel context.CancelCauseFunc // nil while the run waits; set once, under executor.mu
	end    processEnd              // owned by the goroutine of the run
}

// ending is why a run is ended early: the cause of its context, and so its error. The first one wins.
type ending struct {
	outcome string
	why     string // the first line of the output
}

func (e *ending) Error() string { return e.why }

// lane queues the orders of one kind and limits how many run. executor.mu guards all but the bounds, which are fixed.
type lane struct {
	startsMax  int
	startTime  time.Duration
	runningMax int

	queue    []*run // oldest first; those that are not in executor.runs were killed
	starting int    // runs that began less than startTime ago
	running  int
}

// held is a finished execution whose result is not acknowledged yet. Its fields are guarded by executor.mu.
type held struct {
	result     // without Output once stored
	size   int // bytes of output
	since  time.Time
	stored bool // the output is in its file only
}

// newExecutor reads the results that the previous process of this node left on disk. The executor is ready for orders
// once endLeftovers has returned. It delivers results and watches memory only while run runs.
func newExecutor(cfg executorConfig) (*executor, error) {
	if cfg.NodeID == "" {
		return nil, errors.New("executor: the node has no id")
	}
	if cfg.Chance == nil {
		cfg.Chance = rand.Uint64
	}
	cfg.Limits.FilesDir = cmp.Or(cfg.Limits.FilesDir, filepath.Join(cfg.DataDir, "files"))
	e := &executor{
		cfg:   cfg,
		inc:   cfg.Chance() | 1,
		dir:   filepath.Join(cfg.DataDir, "results"),
		base:  inheritedEnvironment(cfg.Limits.passed(os.Environ())),
		news:  make(chan struct{}, 1),
		taken: idSet{},
		runs:  map[int64]*run{},
		lines: make(chan int, processesMax),
		held:  map[int64]*held{},
	}
	// A running process needs two descriptors, and more while it starts, a request one: together two fifths of those
	// that we may open. connsMax says how the others are used.
	files := syscall.Rlimit{Cur: 1_024} // in case it is not known how many we may open
	syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files)
	processes, requests := int(min(processesMax, files.Cur/10)), int(min(requestsMax, files.Cur/5))
	e.processes = lane{startsMax: processStarts, startTime: processStartTime, runningMax: processes}
	e.requests = lane{startsMax: requestStarts, startTime: requestStartTime, runningMax: requests}
	for line := range processesMax {
		e.lines <- line + 1
	}
	var err error
	e.transport, err = newTransport(nil, cfg.Limits)
	err = cmp.Or(err, os.MkdirAll(e.dir, 0o700), os.MkdirAll(cfg.Limits.FilesDir, 0o700), e.readResults())
	if err != nil {
		return nil, fmt.Errorf("executor: %w", err)
	}
	if e.files, err = os.OpenRoot(cfg.Limits.FilesDir); err != nil {
		return nil, fmt.Errorf("--files-dir: %w", err)
	}
	return e, nil
}

// counts returns the numbers of unfinished executions and of unacknowledged results.
func (e *executor) counts() (running, undelivered int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.runs), len(e.held)
}

// run delivers results, writes undelivered ones to disk, and watches memory, until ctx is done. Then it writes what is
// still held to disk, for the next process.
func (e *executor) run(ctx context.Context, report reportFunc) error {
	var others sync.WaitGroup
	others.Go(func() { e.keep(ctx) })
	others.Go(func() { e.watchMemory(ctx) })
	e.deliver(ctx, report)
	others.Wait()
	return e.storeOlderThan(0)
}

// stop refuses new orders, waits up to grace for the running executions, and ends the others as interrupted. It returns
// when nothing runs, at most killGrace and unkillableMax later. run must go on to deliver the results.
func (e *executor) stop(grace time.Duration) {
	e.mu.Lock()
	e.stopping = true
	e.mu.Unlock()
	drained := make(chan struct{})
	go func() {
		e.working.Wait()
		close(drained)
	}()
	select {
	case <-drained:
	case <-time.After(grace):
		e.mu.Lock()
		e.halted = time.Now()
		for _, r := range e.runs {
			e.endLocked(r, &ending{outcomeInterrupted, "the node stopped"})
		}
		e.mu.Unlock()
	}
	<-drained
	e.transport.CloseIdleConnections()
	e.files.Close()
}

// ---- From the order to the result

// start accepts all orders of d, or none if it returns an error: one of hearLocked's, errOtherIncarnation,
// errStaleNumber, errStopping or errQueueFull. It ignores executions that were accepted before, and waits for no run.
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
	e.forgetLocked(d.Startable)
	for _, o := range d.Orders {
		if o.Execution < e.startable || !e.taken.add(o.Execution) {
			continue
		}
		r := &run{order: o, lane: &e.requests} // what no executor runs fails at once and may wait anywhere
		if o.Executor == executorShell {
			r.lane = &e.processes
		}
		e.runs[o.Execution] = r
		e.working.Add(1)
		r.lane.queue = append(r.lane.queue, r)
	}
	e.launchLocked(&e.processes)
	e.launchLocked(&e.requests)
	return nil
}

// forgetLocked forgets the ids below startable, of which none can start any more.
func (e *executor) forgetLocked(startable int64) {
	e.startable = max(e.startable, startable)
	if len(e.taken) >= 2*e.kept+takenSlack {
		maps.DeleteFunc(e.taken, func(neighbours int64, _ uint64) bool { return (neighbours+1)<<6 <= e.startable })
		e.kept = len(e.taken)
	}
}

// hearLocked records a message's term, and the number below which dispatches are stale: errStaleTerm, errMalformed.
func (e *executor) hearLocked(term, floor uint64) error {
	switch {
	case term < e.term:
		return errStaleTerm
	case !believable(term, e.term):
		return errMalformed
	case term > e.term:
		e.term, e.floor = term, 0
	}
	e.floor = max(e.floor, floor)
	return nil
}

// launchLocked starts the queued runs of a lane that its bounds allow.
func (e *executor) launchLocked(l *lane) {
	for len(l.queue) > 0 && l.starting < l.startsMax && l.running < l.runningMax {
		r := l.queue[0]
		l.queue[0], l.queue = nil, l.queue[1:]
		if e.runs[r.order.Execution] == nil {
			continue // killed while it waited
		}
		l.starting++
		l.running++
		ctx, cancel := context.WithCancelCause(context.Background())
		r.cancel = cancel
		go e.work(ctx, r)
	}
}

// work is the goroutine of a run, from its start to its held result.
func (e *executor) work(ctx context.Context, r *run) {
	l := r.lane
	beginning := time.AfterFunc(l.startTime, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		l.starting--
		e.launchLocked(l)
	})
	res := e.execute(ctx, r)
	e.mu.Lock()
	defer e.mu.Unlock()
	r.cancel(nil)
	l.running--
	if beginning.Stop() {
		l.starting--
	}
	e.finishLocked(r, res)
	e.launchLocked(l)
}

// finishLocked turns a run into a held result and schedules its delivery.
func (e *executor) finishLocked(r *run, res result) {
	delete(e.runs, res.Execution)
	r.out.close()
	res.Node, res.Incarnation = e.cfg.Node, e.inc
	if res.Outcome != outcomeSuccess {
		name := executionName(res.Execution, res.Node)
		e.cfg.Failures.add(r.order.Job, name, res.Outcome, res.Output[:res.Reason], r.order.Attempt)
	}
	e.held[res.Execution] = &held{result: res, size: len(res.Output), since: time.Now()}
	e.due = append(e.due, res.Execution)
	select {
	case e.news <- struct{}{}:
	default:
	}
	e.working.Done()
}

// execute runs r to its end. If it failed or was ended early, the first line of the output is the reason.
func (e *executor) execute(ctx context.Context, r *run) result {
	if _, ok := r.order.Processors["files"]; ok {
		r.out.file = e.openOutputFile(&r.order)
	}
	started := time.Now()
	err := e.runOrder(ctx, r)
	res := result{Execution: r.order.Execution, Started: started.UnixNano(), Outcome: outcomeSuccess}
	// The duration is from the monotonic clock, so a step of the wall clock cannot make it negative.
	res.Finished = res.Started + int64(time.Since(started))
	reason := ""
	if err != nil {
		reason = err.Error()
		reason = reason[:min(len(reason), reasonBytesMax)] + "\n"
		res.Outcome = outcomeFailed
		if end, ok := errors.AsType[*ending](err); ok {
			res.Outcome = end.outcome
		}
	}
	res.Process, res.Reason = r.end, len(reason)
	res.Output, res.Dropped = r.out.final(reason)
	if len(r.order.Processors) > 0 {
		res.Output = append(res.Output[:res.Reason:res.Reason], e.process(r, reason, res.Output[res.Reason:])...)
	}
	return res
}

// runOrder runs the order of r with its executor. The error is the reason of a failure, or why the run was ended.
func (e *executor) runOrder(ctx context.Context, r *run) error {
	name := r.order.Executor
	if timeout, err := time.ParseDuration(r.order.Timeout); err == nil {
		var cancel context.CancelFunc
		reason := fmt.Errorf("execution time exceeded the job's timeout of %s", timeout)
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, reason)
		defer cancel()
	}
	here := e.cfg.Limits.Executors // nil: all
	switch {
	case name == "":
		return errors.New("the job has no executor: nothing to run")
	case slices.Contains([]string{"grpc", "kafka", "nats", "rabbitmq", "gcppubsub", "docker", "ecs"}, name):
		return fmt.Errorf("the executor %q of Dkron is not part of belfry, which has shell and http", name)
	case name != executorShell && name != executorHTTP:
		return fmt.Errorf("there is no executor %q; belfry has shell and http", name)
	case here != nil && !slices.Contains(here, name):
		return fmt.Errorf("this node does not run executor %q; select others by tags, or add it to --executors", name)
	case name == executorHTTP:
		return e.runRequest(ctx, r)
	case e.cfg.Shell != nil:
		return e.cfg.Shell(ctx, &r.order, &r.out)
	}
	return e.runProcess(ctx, r)
}

// deliver reports due results in batches until ctx is done.
func (e *executor) deliver(ctx context.Context, report reportFunc) {
	retry := time.Duration(0) // zero while results are taken
	for ctx.Err() == nil {
		batch := e.nextBatch()
		if len(batch) == 0 {
			select {
			case <-e.news:
			case <-ctx.Done():
			}
			continue
		}
		taken, err := report(ctx, batch)
		e.acknowledge(taken)
		if err == nil && len(taken) > 0 {
			retry = 0
		} else {
			if retry == 0 && ctx.Err() == nil {
				e.cfg.Log.Warn("results are not taken; they are kept", "results", len(batch), "err", err)
			}
			retry = min(max(2*retry, reportRetryFirst), reportRetryMax)
		}
		sleep(ctx, max(retry, reportPause))
	}
}

// sleep waits for d and returns true, or false as soon as ctx is done.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// nextBatch returns the next due results, as many as one delivery may carry, and moves them to the end of the list: one
// that the leader refuses is tried again, but delays no other.
func (e *executor) nextBatch() []result {
	var batch []held
	size := 0
	e.mu.Lock()
	for range e.due {
		id := e.due[0]
		if h := e.held[id]; h != nil {
			if len(batch) == reportResultsMax || len(batch) > 0 && size+h.size > reportBytesMax {
				break
			}
			batch, size = append(batch, *h), size+h.size
			e.due = append(e.due, id)
		}
		e.due = e.due[1:]
	}
	e.mu.Unlock()
	return e.load(batch...)
}

// acknowledge forgets results that are durable with the leader, and their files.
func (e *executor) acknowledge(executions []int64) {
	for _, id := range executions {
		e.mu.Lock()
		h := e.held[id]
		delete(e.held, id)
		e.mu.Unlock()
		if h != nil && h.stored {
			e.removeFile(id)
		}
	}
}

// executionName returns the id of an execution as text, for the API and the environment of a process.
func executionName(id int64, node string) string { return strconv.FormatInt(id, 10) + "-" + node }

// scheduledAt returns an order's time as jobs see it: RFC 3339, UTC, with nanoseconds.
func (o *order) scheduledAt() string {
	return time.Unix(0, o.ScheduledAt).UTC().Format(time.RFC3339Nano)
}

// takenSlack is the number of entries by which a set of ids may grow before old ones are removed.
const takenSlack = 1000

// idSet is a set of ids with 64 neighbours per entry. A million runs a day take 0.4 MB if their ids are neighbours, 4
// MB if every tenth id belongs to this node.
type idSet map[int64]uint64

// add reports whether id was not in the set before.
func (s idSet) add(id int64) bool {
	bit := uint64(1) << (id & 63)
	old := s[id>>6]
	s[id>>6] = old | bit
	return old&bit == 0
}

// ---- Questions, kills, live output

// ask answers a question. Held results include their output up to the size of one delivery; further ones are listed as
// running, and the leader gets them from a delivery or a later answer. Errors are those of hearLocked.
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
		ids = slices.AppendSeq(slices.Collect(maps.Keys(e.runs)), maps.Keys(e.held)) // what else was named is unknown
	}
	size := 0
	for _, id := range ids {
		h := e.held[id]
		if h != nil && len(found) < reportResultsMax && (len(found) == 0 || size+h.size <= reportBytesMax) {
			found, size = append(found, *h), size+h.size
		} else if h != nil || e.runs[id] != nil {
			a.Running = append(a.Running, id)
		}
	}
	e.mu.Unlock()
	a.Held = e.load(found...)
	return a, nil
}

// kill ends an execution: processes with SIGTERM and, after a grace time, SIGKILL; a request by cancelling it; a queued
// one at once. It does not wait for the end, and does nothing if the execution has finished. Errors are those of
// hearLocked, and errUnknownExecution.
func (e *executor) kill(k kill) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.hearLocked(k.Term, k.Number); err != nil {
		return err
	}
	if r := e.runs[k.Execution]; r != nil {
		e.endLocked(r, &ending{outcomeKilled, k.Why})
	} else if e.held[k.Execution] == nil {
		return errUnknownExecution
	}
	return nil
}

// endLocked tells a run to end. A queued one ends at once, without processors, as it has no output.
func (e *executor) endLocked(r *run, end *ending) {
	if r.cancel != nil {
		r.cancel(end)
		return
	}
	now, reason := time.Now().UnixNano(), end.why+"\n"
	e.finishLocked(r, result{Execution: r.order.Execution, Started: now, Finished: now, Outcome: end.outcome,
		Output: []byte(reason), Reason: len(reason)})
}

// output writes what an execution has printed from offset from on, or from the oldest byte that is kept; if from is
// negative, the last -from bytes. With follow it goes on until the run ends. For a held execution it writes the output
// of the result, which without follow may begin with the reason of a failure. It fails as ctx and w do, or with
// errUnknownExecution.
func (e *executor) output(ctx context.Context, execution int64, follow bool, from int64, w io.Writer) error {
	var finished held
	e.mu.Lock()
	r, h := e.runs[execution], e.held[execution]
	if h != nil {
		finished = *h
	}
	e.mu.Unlock()
	switch {
	case r == nil && h == nil:
		return errUnknownExecution
	case r == nil:
		res := e.load(finished)[0]
		if follow {
			res.Output = res.Output[res.Reason:]
		}
		r = &run{out: tail{kept: res.Output, total: res.Dropped + int64(len(res.Output)), closed: true}}
	}
	return r.out.copyTo(ctx, w, from, follow)
}

// printed returns the last printedBytesMax bytes that executions have printed, plus one if there are more, until they
// add up to printedAllMax. It omits unknown executions.
func (e *executor) printed(executions []int64) map[int64][]byte {
	found, size := map[int64][]byte{}, 0
	for _, id := range executions {
		var out bytes.Buffer
		err := e.output(context.Background(), id, false, -printedBytesMax-1, &out)
		if err == nil && size+out.Len() <= printedAllMax {
			found[id], size = out.Bytes(), size+out.Len()
		}
	}
	return found
}

// tail keeps the end of the output of a run.
type tail struct {
	file *outputFile // gets all of it as well; nil if there is none; owned by the writer

	mu     sync.Mutex
	kept   []byte        // the newest bytes: all, or at least outputBytesMax
	total  int64         // bytes written since the beginning
	closed bool          // no more will come
	more   chan struct{} // closed at the next change; nil while nobody waits
}

// Write appends p and drops the oldest bytes beyond the limit.
func (t *tail) Write(p []byte) (int, error) {
	if t.file != nil {
		t.file.Write(p)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.total += int64(len(p))
	t.kept = append(t.kept, p...)
	if len(t.kept) > outputBytesMax+outputSlackBytes {
		t.kept = append(t.kept[:0], t.kept[len(t.kept)-outputBytesMax:]...)
	}
	t.changedLocked()
	return len(p), nil
}

// ReadFrom appends src until its end. It exists because io.Copy's own buffer would be eight times as large.
func (t *tail) ReadFrom(src io.Reader) (total int64, err error) {
	return io.CopyBuffer(struct{ io.Writer }{t}, struct{ io.Reader }{src}, make([]byte, outputReadBytes))
}

// close marks the output as complete.
func (t *tail) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	t.changedLocked()
}

func (t *tail) changedLocked() {
	if t.more != nil {
		close(t.more)
		t.more = nil
	}
}

// lastLocked returns the last n bytes, or those that are kept of them. The result shares the buffer.
func (t *tail) lastLocked(n int64) []byte {
	n = max(0, min(n, outputBytesMax, int64(len(t.kept))))
	return t.kept[int64(len(t.kept))-n:]
}

// final returns the reason followed by as much of the output's end as fits, and the number of dropped bytes. Nothing
// may be written after it, because the result may share the buffer.
func (t *tail) final(reason string) (output []byte, dropped int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	output = t.lastLocked(int64(outputBytesMax - len(reason)))
	dropped = t.total - int64(len(output))
	if reason != "" {
		output = append([]byte(reason), output...)
	}
	return output, dropped
}

// copyTo writes what is kept from offset from on to w, or the last -from bytes; with follow until the output is closed.
func (t *tail) copyTo(ctx context.Context, w io.Writer, from int64, follow bool) error {
	for {
		t.mu.Lock()
		if from < 0 {
			from = max(t.total+from, 0)
		}
		part := bytes.Clone(t.lastLocked(t.total - from))
		from = max(from, t.total)
		last := t.closed || !follow
		if t.more == nil && !last {
			t.more = make(chan struct{})
		}
		more := t.more
		t.mu.Unlock()
		if _, err := w.Write(part); err != nil || last {
			return err
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// ---- The executor "shell"

// runProcess runs the command of r in its own session. After the first process has ended, it reads the output until it
// is closed, at most outputWait, and kills what is left of the session. If ctx ends earlier, it kills the whole run.
// The error is the reason of a failure, or why the run was ended.
func (e *executor) runProcess(ctx context.Context, r *run) error {
	timeout, grace, memoryMax, err := parseLimits(r.order.Config)
	if err != nil {
		return err
	}
	if memoryMax > 0 && runtime.GOOS != "linux" {
		return errors.New("executor_config.mem_limit works on Linux only")
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		reason := fmt.Errorf("execution time exceeded the timeout of %s", timeout)
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, reason)
		defer cancel()
	}
	cmd, err := e.command(&r.order)
	if err != nil {
		return err
	}
	// We make the pipe, because exec.Cmd would wait for every process that holds its own pipe open.
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = in, in
	s := &session{execution: strconv.FormatInt(r.order.Execution, 10), memoryMax: memoryMax}
	line := <-e.lines
	defer func() { e.note(line, ""); e.lines <- line }()
	e.note(line, s.execution) // whatever happens next
	err = cmd.Start()
	in.Close()
	if err != nil {
		return err
	}
	s.pid = cmd.Process.Pid
	e.note(line, fmt.Sprint(s.execution, " ", s.pid, " ", e.uptime.soon()))
	read, ended, quiet := make(chan struct{}), make(chan struct{}), false
	go func() { // until the last writer is gone, or the deadline: either is the end of the output
		r.out.ReadFrom(out)
		close(read)
	}()
	go func() { // for ever, if the process cannot be ended
		err = cmd.Wait()
		s.reaped.Store(true)
		close(ended)
	}()
	if memoryMax > 0 {
		e.limited.Store(r, s)
		defer e.limited.Delete(r)
	}
	var left []proc
	select {
	case <-ended:
		select {
		case <-read:
			quiet = syscall.Kill(-s.pid, 0) == syscall.ESRCH // as most runs are; this is quicker than a look at /proc
		case <-time.After(outputWait):
		case <-ctx.Done():
		}
		if !quiet {
			left = e.terminate(ctx, func(found []proc) []proc {
				return slices.DeleteFunc(s.all(found), func(p proc) bool { return p.session != s.pid }) // not a daemon
			}, grace, detachMax)
		}
	case <-ctx.Done():
	}
	cause := context.Cause(ctx) // from here on it is too late to end the run
	if cause != nil {
		left = e.terminate(context.Background(), s.all, grace, 0)
	}
	out.SetReadDeadline(time.Now().Add(drainMax))
	<-read
	if len(left) > 0 {
		e.cfg.Log.Error("processes of an execution do not end",
			"job", r.order.Job, "execution", s.execution, "processes", names(left))
		fmt.Fprintf(&r.out, "\nThese processes could not be ended: %s.\n", names(left))
	}
	select {
	case <-ended:
	case <-time.After(drainMax):
		return cause // the first process is one of those left
	}
	r.end = endOf(cmd.ProcessState)
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // the process succeeded without having read its payload, which a child holds open
	}
	return cmp.Or(cause, err)
}

// endOf returns how a process ended. The kernel's peak memory of a process includes the time before exec, when it
// shared our memory, so it counts only if it exceeds ours.
func endOf(state *os.ProcessState) processEnd {
	end := processEnd{CPU: int64(state.UserTime() + state.SystemTime())}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		end.Signal = status.Signal().String()
	} else if code := state.ExitCode(); code >= 0 {
		end.ExitCode = &code
	}
	var own syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &own) // never fails
	if r, ok := state.SysUsage().(*syscall.Rusage); ok && r.Maxrss > own.Maxrss && runtime.GOOS == "linux" {
		end.Memory = r.Maxrss << 10
	}
	return end
}

// command returns the command of an order, without its output.
func (e *executor) command(o *order) (*exec.Cmd, error) {
	words, err := commandWords(o.Config)
	if err != nil {
		return nil, err
	}
	// A new session has no terminal that could block it. Pdeathsig is unsuitable: it exists on Linux only, follows the
	// thread rather than the process, and does not reach grandchildren. endLeftovers replaces it.
	cmd := &exec.Cmd{Args: words, Dir: o.Config["cwd"], WaitDelay: drainMax}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if _, err := os.Stat(cmd.Dir + "/"); err != nil { // which Start would report as if it were the program's fault
		return nil, fmt.Errorf("executor_config.cwd: %w", err)
	}
	var account []string
	if su := o.Config["su"]; su != "" {
		if cmd.SysProcAttr.Credential, account, err = e.cfg.Limits.account(su); err != nil {
			return nil, fmt.Errorf("executor_config.su: %w", err)
		}
	}
	cmd.Env = e.environment(o, account)
	if cmd.Path, err = lookPath(words[0], cmd.Env); err != nil {
		return nil, err
	}
	if payload := o.Config["payload"]; payload != "" {
		data, err := base64.StdEncoding.DecodeString(payload)
		if err != nil {
			return nil, fmt.Errorf("executor_config.payload: %w", err)
		}
		cmd.Stdin = bytes.NewReader(data)
	}
	return cmd, nil
}

// lookPath finds a program in the PATH of its environment. It skips relative directories, which would be below ours.
func lookPath(program string, environ []string) (string, error) {
	if strings.Contains(program, "/") {
		return program, nil
	}
	var dirs []string
	for _, entry := range environ {
		if path, ok := strings.CutPrefix(entry, "PATH="); ok {
			dirs = filepath.SplitList(path) // the last counts
		}
	}
	for _, dir := range dirs {
		if file, err := exec.LookPath(filepath.Join(dir, program)); err == nil && filepath.IsAbs(dir) {
			return file, nil
		}
	}
	return "", &exec.Error{Name: program, Err: exec.ErrNotFound}
}

// commandWords returns the program and its arguments.
func commandWords(config map[string]string) ([]string, error) {
	command := config["command"]
	if command == "" {
		return nil, errors.New("executor_config.command is missing")
	}
	if shell, _ := strconv.ParseBool(config["shell"]); shell {
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

// splitWords splits a command into words as a POSIX shell does: blanks separate, quotes and backslashes quote. It
// expands nothing, and treats operators and comments as text.
func splitWords(s string) (words []string, err error) {
	var word []byte
	inWord, quote := false, byte(0)
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '\'' || c == '"'):
			quote, inWord = c, true
		case quote == 0 && (c == ' ' || c == '\t' || c == '\n'):
			if inWord {
				words = append(words, string(word))
				word, inWord = word[:0], false
			}
		case c == '\\' && quote == 0 && i+1 == len(s):
			return nil, errors.New("a backslash at the end quotes nothing")
		case c == '\\' && i+1 < len(s) && (quote == 0 || quote == '"' && strings.IndexByte("$`\"\\\n", s[i+1]) >= 0):
			if i++; s[i] != '\n' { // a quoted newline joins two lines
				word, inWord = append(word, s[i]), true
			}
		default:
			word, inWord = append(word, c), true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("a %s quote is not closed", map[byte]string{'\'': "single", '"': "double"}[quote])
	}
	if inWord {
		words = append(words, string(word))
	}
	return words, nil
}

// inheritedEnvironment returns the node's environment without the node's settings, which may be secret, and without the
// variables that come from the order.
func inheritedEnvironment(environ []string) []string {
	own := regexp.MustCompile("^(BELFRY_|DKRON_|ENV_JOB_NAME=)")
	return slices.Clip(slices.DeleteFunc(environ, own.MatchString))
}

// environment returns the environment of a process, in which the last entry of a name wins: the inherited one, that of
// its user, what identifies the run, the job's own entries, its parameters, and the marks by which readProcs finds it.
func (e *executor) environment(o *order, account []string) []string {
	env := append(slices.Concat(e.base, account),
		"ENV_JOB_NAME="+o.Job,
		"BELFRY_JOB="+o.Job,
		"BELFRY_SCHEDULED_AT="+o.scheduledAt(),
		"BELFRY_ATTEMPT="+strconv.Itoa(o.Attempt),
		"BELFRY_NODE="+e.cfg.Node,
	)
	env = append(env, envEntries(o.Config)...)
	for _, k := range slices.Sorted(maps.Keys(o.Params)) {
		env = append(env, "BELFRY_PARAM_"+strings.ToUpper(k)+"="+o.Params[k])
	}
	return append(env, "BELFRY_EXECUTION="+executionName(o.Execution, e.cfg.Node), "BELFRY_NODE_ID="+e.cfg.NodeID)
}

// ---- The processes of a run

// session is the processes of a run: the session of the first, and all whose environment names the execution.
type session struct {
	execution string
	memoryMax int64 // resident bytes of all together, 0: no limit
	pid       int   // of the first process, which leads the session
	reaped    atomic.Bool
}

// all returns the processes of the run. Once the first is reaped, its pid may be reused by another session.
func (s *session) all(found []proc) []proc {
	if runtime.GOOS != "linux" && syscall.Kill(-s.pid, 0) == nil {
		return []proc{{pid: s.pid, group: s.pid, session: s.pid}} // all that can be known
	}
	other := s.reaped.Load() && slices.ContainsFunc(found, func(p proc) bool { return p.pid == s.pid })
	return slices.DeleteFunc(slices.Clone(found), func(p proc) bool {
		return p.execution != s.execution && (p.session != s.pid || other)
	})
}

// terminate kills the processes that find returns: with SIGTERM, and after the grace time with SIGKILL. After another
// unkillableMax it gives up and returns those that are left. Before SIGTERM it waits up to settle for newly forked
// processes, and a fifth of that for others, which may be about to detach themselves. When ctx ends it returns at once.
// When the node stops, the grace time is cut.
func (e *executor) terminate(ctx context.Context, find func([]proc) []proc, grace, settle time.Duration) []proc {
	begun, told, gone := time.Now(), time.Time{}, 0
	for pause := lookFirst; ; pause = min(2*pause, lookMax) {
		found, now, kill := find(e.procs()), time.Now(), told.Add(grace)
		e.mu.Lock()
		if last := e.halted.Add(killGrace); !e.halted.IsZero() && kill.After(last) {
			kill = last
		}
		e.mu.Unlock()
		switch {
		case ctx.Err() != nil:
			return nil
		case len(found) == 0: // one look may miss a process that is being forked, or executes another program
			if gone++; gone > 1 {
				return nil
			}
		case told.IsZero() && now.Sub(begun) < settle &&
			(now.Sub(begun) < settle/5 || slices.ContainsFunc(found, func(p proc) bool { return p.forked })):
		case told.IsZero():
			told = now
			signalAll(found, syscall.SIGTERM)
		case now.After(kill.Add(unkillableMax)):
			return found
		case !now.Before(kill):
			signalAll(found, syscall.SIGKILL)
		}
		sleep(ctx, pause)
	}
}

// signalAll signals the process groups, so that it also reaches newly forked processes; a session belongs to one run.
// It ignores errors: the processes have ended or belong to another user.
func signalAll(found []proc, signal syscall.Signal) {
	told := map[int]bool{}
	for _, p := range found {
		if !told[p.group] {
			syscall.Kill(-p.group, signal)
		}
		told[p.group] = true
	}
}

// watchMemory kills runs that exceed their limits, until ctx is done. Shared memory counts for each process.
func (e *executor) watchMemory(ctx context.Context) {
	for sleep(ctx, memoryEvery) {
		procs := sync.OnceValue(e.procs) // if there is a limit at all
		for key, value := range e.limited.Range {
			r, s := key.(*run), value.(*session)
			used, all := int64(0), s.all(procs())
			for _, p := range all {
				used += p.pages * int64(os.Getpagesize())
			}
			if used > s.memoryMax {
				r.cancel(fmt.Errorf("%d resident bytes exceeded the mem_limit of %d bytes", used, s.memoryMax))
				signalAll(all, syscall.SIGKILL) // TERM would leave it time to take more
			}
		}
	}
}

// procs returns the processes outside our own session, as they are after the call. Concurrent callers share one read.
func (e *executor) procs() []proc {
	asked := time.Now()
	e.procsMu.Lock()
	defer e.procsMu.Unlock()
	if !e.procsBegun.After(asked) {
		e.procsBegun, e.procsFound = time.Now(), readProcs(e.cfg.NodeID)
	}
	return e.procsFound
}

// note writes a line of the file of open runs: "execution pid uptime". The file is mapped, because three writes of it
// would cost a thirtieth of a run. It outlives a crash of this process, and one of the machine ends the processes too.
func (e *executor) note(line int, text string) {
	copy(e.notes[line*noteBytes:], fmt.Appendf(nil, "%-*s\n", noteBytes-1, text))
}

// endLeftovers kills what is left of the runs that were open when the previous process of this node ended, and creates
// a new file of open runs. It must be called when nothing can fail the start any more, and before the node serves
// anybody. The first line of the file says where its pids are valid: in this boot and pid namespace, and in this very
// directory rather than a copy. Only Linux shows the environment of other processes; elsewhere leftovers keep running.
func (e *executor) endLeftovers() error {
	if e.cfg.Shell != nil {
		return nil
	}
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	space, _ := os.Readlink("/proc/self/ns/pid")
	dir, err := os.Stat(e.dir)
	if err != nil {
		return fmt.Errorf("executor: %w", err)
	}
	stat := dir.Sys().(*syscall.Stat_t)
	here := fmt.Sprint(strings.TrimSpace(string(boot)), " ", space, " ", stat.Dev, ":", stat.Ino)
	path := filepath.Join(e.cfg.DataDir, "running")
	former, _ := os.ReadFile(path) // if it cannot be read, it cannot be written
	open := map[string]bool{}      // executions
	began := map[int]int{}         // pids of leaders of sessions, and an uptime before which those began
	first, lines, _ := strings.Cut(string(former), "\n")
	if strings.TrimRight(first, " ") == here {
		for line := range strings.Lines(lines) {
			var execution string
			var pid, uptime int // 0 while it started
			if n, _ := fmt.Sscan(line, &execution, &pid, &uptime); n > 0 {
				open[execution], began[pid] = true, uptime
			}
		}
	}
	left := func(found []proc) []proc {
		leads := func(p, q proc) bool { return q.pid == p.session && q.start < began[q.pid] }
		return slices.DeleteFunc(slices.Clone(found), func(p proc) bool {
			return !open[p.execution] && !slices.ContainsFunc(found, func(q proc) bool { return leads(p, q) })
		})
	}
	if found := left(e.procs()); len(found) > 0 {
		e.cfg.Log.Warn("ending processes that a former process of this node left running", "processes", names(found))
		if found = e.terminate(context.Background(), left, 0, 0); len(found) > 0 {
			e.cfg.Log.Error("processes of a former process of this node do not end", "processes", names(found))
		}
	}
	// It is written rather than made long, so that no full disk can fail a write to the map.
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	const size, access = (processesMax + 1) * noteBytes, syscall.PROT_READ | syscall.PROT_WRITE
	if err == nil {
		defer file.Close() // the map stays
		_, err = file.Write(bytes.Repeat([]byte(" "), size))
	}
	if err == nil {
		e.notes, err = syscall.Mmap(int(file.Fd()), 0, size, access, syscall.MAP_SHARED)
	}
	if err != nil {
		return fmt.Errorf("executor: the file %s of open runs: %w", path, err)
	}
	e.note(0, here)
	return nil
}

// ---- The executor "http"

// runRequest sends the request of r. The error is the reason of a failure, or why the run was ended.
func (e *executor) runRequest(ctx context.Context, r *run) error {
	config := r.order.Config
	timeout := requestTimeout
	if r.order.Timeout != "" {
		timeout = requestTimeoutMax * time.Second // unless ctx ends
	}
	if n, err := strconv.Atoi(config["timeout"]); err == nil && n > 0 {
		timeout = time.Duration(min(n, requestTimeoutMax)) * time.Second
	}
	reason := fmt.Errorf("no complete response within the timeout of %s", timeout)
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, reason)
	defer cancel()
	req, err := e.newRequest(ctx, &r.order)
	if err != nil {
		return err
	}
	pattern, err := bodyPattern(config["expectBody"])
	if err != nil {
		return err
	}
	transport := e.transport
	if cmp.Or(config["tlsNoVerifyPeer"], config["tlsCertificateFile"], config["tlsCertificateKeyFile"],
		config["tlsRootCAsFile"]) != "" {
		// Each run has its own connections: few jobs have such settings, and the next run reads renewed files.
		if transport, err = newTransport(config, e.cfg.Limits); err != nil {
			return err
		}
		defer transport.CloseIdleConnections()
	}
	debug := config["debug"] != ""
	if debug {
		headers := req.Header
		req.Header = withoutSecrets(headers)
		dump, _ := httputil.DumpRequestOut(req, true) // what fails here fails again below
		req.Header = headers
		fmt.Fprintf(&r.out, "%s\n\n", dump)
	}
	resp, err := (&http.Client{Transport: once{transport}, CheckRedirect: checkRedirect}).Do(req)
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err // without the URL, which may hold a password
	}
	if err != nil {
		return cmp.Or(context.Cause(ctx), err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusSwitchingProtocols {
		resp.Body = http.NoBody // what follows is no body, and does not end with the context
	}
	if got := resp.Request.Method; got != req.Method {
		const text = "a redirect made a %s of the %s, without its body; give the job the URL behind the redirect\n"
		fmt.Fprintf(&r.out, text, got, req.Method)
	}
	if debug {
		resp.Header = withoutSecrets(resp.Header)
		dump, _ := httputil.DumpResponse(resp, false) // it fails only for a body
		r.out.Write(dump)
	}
	met := config["expectBody"] == "" || pattern.MatchReader(bufio.NewReader(io.TeeReader(resp.Body, &r.out)))
	if _, err := r.out.ReadFrom(resp.Body); err != nil { // also what the match met
		return cmp.Or(context.Cause(ctx), err)
	}
	// Clients look for these two texts of upstream's.
	isCode := func(s string) bool { return strings.TrimSpace(s) == strconv.Itoa(resp.StatusCode) }
	if want := config["expectCode"]; want != "" && !slices.ContainsFunc(strings.Split(want, ","), isCode) {
		const text = "received response code does not match the expected code: got %d, want %s"
		return fmt.Errorf(text, resp.StatusCode, want)
	}
	if !met {
		return errors.New("received response body did not match the expected body")
	}
	return nil
}

// checkRedirect removes secret-looking headers and the Referer before a redirect to another host. net/http removes few.
func checkRedirect(r *http.Request, via []*http.Request) error {
	first := via[0].URL
	if !strings.EqualFold(r.URL.Host, first.Host) || first.Scheme == "https" && r.URL.Scheme != "https" {
		r.Header = withoutSecrets(r.Header)
		r.Header.Del("Referer")
	}
	if len(via) >= redirectsMax {
		return fmt.Errorf("stopped after %d redirects", redirectsMax)
	}
	return nil
}

// withoutSecrets returns a copy of headers without those that look secret.
func withoutSecrets(headers http.Header) http.Header {
	plain := headers.Clone()
	maps.DeleteFunc(plain, func(name string, _ []string) bool { return secretKey(name) && name != "Idempotency-Key" })
	return plain
}

// Errors of an http job. They do not quote a value, because it may be secret.
var (
	errURL      = errors.New("executor_config.url: must be a URL such as https://host/path; escape special characters")
	errHeaders  = errors.New(`executor_config.headers: is not a JSON array of "Name: value"`)
	errHeader   = errors.New(`executor_config.headers: an entry is not "Name: value"`)
	errSentOnce = errors.New("the connection broke after the request was sent, and the server may have executed it; " +
		"set retries if it may be sent again")
)

// requestHeaders returns the headers in executor_config. Errors are errHeaders and errHeader.
func requestHeaders(config map[string]string) (http.Header, error) {
	const inNames = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" // RFC 9110, 5.6.2
	var entries []string
	if doc := config["headers"]; doc != "" && json.Unmarshal([]byte(doc), &entries) != nil {
		return nil, errHeaders
	}
	headers := http.Header{}
	for _, entry := range entries {
		name, value, ok := strings.Cut(entry, ":")
		if name = strings.TrimSpace(name); !ok || name == "" || strings.Trim(name, inNames) != "" {
			return nil, errHeader
		}
		headers.Add(name, strings.TrimSpace(value))
	}
	return headers, nil
}

// newRequest returns the request that executor_config describes, with headers that identify the run, unless the job
// sets them itself. The Idempotency-Key is the same for all attempts of a group on this node.
func (e *executor) newRequest(ctx context.Context, o *order) (*http.Request, error) {
	for _, setting := range [...]string{"url", "method"} {
		if o.Config[setting] == "" {
			return nil, fmt.Errorf("executor_config.%s is empty", setting)
		}
	}
	body := strings.NewReader(o.Config["body"])
	req, err := http.NewRequestWithContext(ctx, o.Config["method"], o.Config["url"], body)
	if _, ok := errors.AsType[*url.Error](err); ok {
		return nil, errURL
	}
	if err != nil {
		return nil, err
	}
	if req.Header, err = requestHeaders(o.Config); err != nil {
		return nil, err
	}
	req.Host = req.Header.Get("Host") // empty: that of the URL
	for k, v := range o.Params {
		req.Header.Set("Belfry-Param-"+strings.ReplaceAll(k, "_", "-"), v) // proxies drop names with _
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

// once sends each HTTP/1 request at most once: after net/http has begun to write it, the Proxy of newTransport refuses
// a second attempt. By itself, net/http retries on a broken reused connection if the method or an Idempotency-Key
// allows it; but the server may have executed the request. Over HTTP/2 it retries only what the server has refused.
type once struct{ *http.Transport }

func (o once) RoundTrip(r *http.Request) (*http.Response, error) {
	s := new(sending)
	begin := func(name string, _ []string) {
		if name == "Host" { // the first one in HTTP/1, and none in HTTP/2
			s.begun.Store(true)
		}
	}
	ctx := httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{WroteHeaderField: begin})
	return o.Transport.RoundTrip(r.WithContext(context.WithValue(ctx, sendingKey{}, s)))
}

// sending is the state that once and newTransport share about one request, in its context under sendingKey.
type sending struct {
	begun   atomic.Bool // net/http began to write it
	proxied atomic.Bool // it goes to a proxy
}

type sendingKey struct{}

// newTransport returns a transport with the TLS settings in config. It checks addresses when dialling, so neither a
// name that resolves differently the second time nor a redirect evades the limits. With a proxy, which resolves names
// itself, it checks only addresses in the URL.
func newTransport(config map[string]string, limits nodeLimits) (t *http.Transport, err error) {
	t = http.DefaultTransport.(*http.Transport).Clone()
	dialer := net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}
	dialer.ControlContext = func(ctx context.Context, _, address string, _ syscall.RawConn) error {
		addr, err := netip.ParseAddrPort(address)
		if err != nil || ctx.Value(sendingKey{}).(*sending).proxied.Load() { // the operator's own proxy may be anywhere
			return err
		}
		return limits.checkAddr(addr.Addr())
	}
	t.DialContext = dialer.DialContext
	t.Proxy = func(r *http.Request) (*url.URL, error) { // asked each time before a request is sent
		s := r.Context().Value(sendingKey{}).(*sending)
		if s.begun.Load() {
			return nil, errSentOnce
		}
		proxy, err := http.ProxyFromEnvironment(r)
		s.proxied.Store(proxy != nil)
		if addr, ok := literalAddr(r.URL.Hostname()); proxy != nil && err == nil && ok {
			err = limits.checkAddr(addr)
		}
		return proxy, err
	}
	t.MaxIdleConns, t.MaxIdleConnsPerHost, t.IdleConnTimeout = idleMax, idlePerHostMax, idleTimeMax
	t.MaxResponseHeaderBytes = responseHeadMax
	noVerify, _ := strconv.ParseBool(config["tlsNoVerifyPeer"])
	t.TLSClientConfig = &tls.Config{InsecureSkipVerify: noVerify}
	var pem [3][]byte
	for i, setting := range [...]string{"tlsCertificateFile", "tlsCertificateKeyFile", "tlsRootCAsFile"} {
		if pem[i], err = readTLSFile(config[setting]); err != nil {
			return nil, fmt.Errorf("executor_config.%s: %w", setting, err)
		}
	}
	if pem[0] != nil || pem[1] != nil {
		pair, err := tls.X509KeyPair(pem[0], pem[1])
		if err != nil {
			return nil, fmt.Errorf("executor_config.tlsCertificateFile: %w", err)
		}
		t.TLSClientConfig.Certificates = []tls.Certificate{pair}
	}
	if pem[2] != nil {
		t.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem[2]) {
			return nil, fmt.Errorf("executor_config.tlsRootCAsFile: %s holds no certificate", config["tlsRootCAsFile"])
		}
	}
	return t, nil
}

// readTLSFile returns the content of a file of a job's TLS settings, nil if there is none.
func readTLSFile(name string) ([]byte, error) {
	if name == "" {
		return nil, nil
	}
	f, err := regular(os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, tlsBytesMax+1))
	if err == nil && len(data) > tlsBytesMax {
		err = fmt.Errorf("%s is larger than %d bytes", name, tlsBytesMax)
	}
	return data, err
}

// regular returns a file that was opened without blocking if it is a regular one, and otherwise an error: a pipe could
// block its reader or writer for ever.
func regular(f *os.File, err error) (*os.File, error) {
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, cmp.Or(err, fmt.Errorf("%s is not a regular file", f.Name()))
	}
	return f, nil
}

// ---- Processors

// process passes an output to the processors of the order, sorted by name, and returns what to store: with forward the
// output, without it a note about where it went. A processor that fails adds a line to the output; an unknown one
// changes nothing.
func (e *executor) process(r *run, reason string, output []byte) []byte {
	o := &r.order
	for _, name := range slices.Sorted(maps.Keys(o.Processors)) {
		note := "Output in belfry log"
		var err error
		switch name {
		case "log":
			e.cfg.Log.Info("output of an execution",
				"job", o.Job, "execution", executionName(o.Execution, e.cfg.Node), "output", reason+string(output))
		case "files":
			note = "Output in " + filepath.Join(e.cfg.Limits.FilesDir, r.out.file.name)
			r.out.file.Write([]byte(reason))
			err = cmp.Or(r.out.file.err, r.out.file.Close())
			if r.out.file.name != "" { // even after an error, which may be that the disk is full
				err = cmp.Or(err, e.removeOutputFiles(o, filepath.Dir(r.out.file.name)))
			}
		case "syslog":
			all := append([]byte(reason), output...)
			note, err = "Output in syslog", writeSyslog(syslogPaths, time.Now().Add(syslogMax), o.Job, all)
		default:
			continue
		}
		if err != nil {
			e.cfg.Log.Warn("a processor failed", "processor", name, "job", o.Job, "err", err)
			output = fmt.Appendf(slices.Clip(output), "\nprocessor %s: %v\n", name, err)
			output = output[max(0, len(output)-outputBytesMax+len(reason)):]
			continue
		}
		if forward, _ := strconv.ParseBool(o.Processors[name]["forward"]); !forward {
			output = []byte(note)
		}
	}
	return output
}

// outputFile is the file that the processor "files" writes an output to as it comes. It ignores writes after an error.
type outputFile struct {
	*os.File
	name string // below nodeLimits.FilesDir
	err  error
}

func (f *outputFile) Write(p []byte) (int, error) {
	if f.err == nil {
		_, f.err = f.File.Write(p)
	}
	return len(p), nil
}

// outputPattern returns the path of the processor "files" below nodeLimits.FilesDir, with {job}, {execution} and {time}
// not replaced; ok is false if it is not below it.
func outputPattern(settings map[string]string) (pattern string, ok bool) {
	pattern = filepath.Join(settings["log_dir"], cmp.Or(settings["file_name"], "{job}-{execution}.log"))
	return pattern, filepath.IsLocal(pattern)
}

// openOutputFile opens the file of an output, to which runs may append. It stays in nodeLimits.FilesDir (symlinks too).
func (e *executor) openOutputFile(o *order) *outputFile {
	f := &outputFile{}
	pattern, ok := outputPattern(o.Processors["files"])
	if !ok {
		const example = "logs/{job}/{execution}.log"
		f.err = errors.New("log_dir and file_name: must name a file below --files-dir, such as " + example)
		return f
	}
	execution := strings.ReplaceAll(executionName(o.Execution, e.cfg.Node), "/", "_")
	f.name = strings.NewReplacer("{job}", o.Job, "{execution}", execution,
		"{time}", time.Now().UTC().Format("20060102T150405Z")).Replace(pattern)
	if f.err = e.files.MkdirAll(filepath.Dir(f.name), 0o700); f.err == nil {
		f.File, f.err = regular(e.files.OpenFile(f.name, os.O_WRONLY|os.O_CREATE|os.O_APPEND|syscall.O_NONBLOCK, 0o600))
	}
	return f
}

// removeOutputFiles removes output files of a job that are older than its max_age, and the oldest beyond its max_files,
// in a directory. It counts files whose names match the job's file_name.
func (e *executor) removeOutputFiles(o *order, dir string) error {
	settings := o.Processors["files"]
	if settings["max_files"]+settings["max_age"] == "" {
		return nil
	}
	most, err := strconv.Atoi(cmp.Or(settings["max_files"], strconv.Itoa(math.MaxInt)))
	age, err2 := time.ParseDuration(cmp.Or(settings["max_age"], "0s"))
	if err != nil || most < 1 || err2 != nil || age < 0 {
		return errors.New(`max_files, max_age: must be a number from 1 and a duration as "720h"; nothing was removed`)
	}
	pattern, _ := outputPattern(settings)
	node := regexp.QuoteMeta(strings.ReplaceAll(e.cfg.Node, "/", "_"))
	name := "^" + regexp.QuoteMeta(filepath.Base(pattern)) + "$"
	own := regexp.MustCompile(strings.NewReplacer(`\{job\}`, regexp.QuoteMeta(o.Job), `\{execution\}`, `\d+-`+node,
		`\{time\}`, `\d{8}T\d{6}Z`).Replace(name))
	var files []fs.FileInfo
	entries, err := fs.ReadDir(e.files.FS(), dir)
	for _, entry := range entries {
		if info, err := entry.Info(); err == nil && own.MatchString(entry.Name()) { // else it is gone
			files = append(files, info)
		}
	}
	slices.SortFunc(files, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	for i, f := range files {
		if i >= most || age > 0 && time.Since(f.ModTime()) > age {
			err = cmp.Or(err, e.files.Remove(filepath.Join(dir, f.Name())))
		}
	}
	return err
}

// syslogPaths are the sockets of the system's log.
var syslogPaths = []string{"/dev/log", "/var/run/syslog", "/var/run/log"}

// writeSyslog writes an output to the first of the sockets that accepts a connection, one message per line. Unlike
// package log/syslog it has a deadline: a log that does not read must not block the run.
func writeSyslog(paths []string, deadline time.Time, job string, output []byte) error {
	var conn net.Conn
	for _, network := range [...]string{"unixgram", "unix"} {
		for _, path := range paths {
			if conn == nil {
				conn, _ = (&net.Dialer{Deadline: deadline}).Dial(network, path)
			}
		}
	}
	if conn == nil {
		return fmt.Errorf("no system log listens at %s", strings.Join(paths, ", "))
	}
	defer conn.Close()
	conn.SetDeadline(deadline)
	for line := range bytes.Lines(output) {
		for part := range slices.Chunk(bytes.TrimRight(line, "\r\n"), syslogBytesMax) {
			head := fmt.Sprintf("<%d>%s", syslog.LOG_INFO|syslog.LOG_CRON, time.Now().Format(time.Stamp))
			if _, err := fmt.Fprintf(conn, "%s belfry[%d]: %s: %s\n", head, os.Getpid(), job, part); err != nil {
				return err
			}
		}
	}
	return nil
}

// ---- Results on disk

// keep writes results to disk that cannot be delivered in time, until ctx is done.
func (e *executor) keep(ctx context.Context) {
	failing := false
	for sleep(ctx, keepEvery) {
		err := e.storeOlderThan(diskAfter)
		if err != nil && !failing {
			e.cfg.Log.Error("results cannot be kept on disk; they stay in memory", "err", err)
		}
		failing = err != nil
	}
}

// storeOlderThan writes the held results of at least this age to disk and frees their outputs. It returns the first
// error; what it could not write stays in memory.
//
// The files are not synced: a crash of the process does not harm them. After a power failure one may be missing or
// torn, and the leader records "interrupted", as for everything that was running then; syncing each would slow a
// server's log down just when it elects a leader. Their number is bounded by what the last leader had dispatched.
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

// load returns held results including their outputs.
func (e *executor) load(list ...held) (results []result) {
	for _, h := range list {
		res := h.result
		if h.stored {
			var err error
			if res, err = parseResult(os.ReadFile(e.path(h.Execution))); err != nil {
				// It may just have been acknowledged. If not, better to report the outcome without the output.
				res = h.result
				res.Output, res.Reason = fmt.Appendf(nil, "the output was lost on the node's disk: %v\n", err), 0
			}
		}
		results = append(results, res)
	}
	return results
}

func (e *executor) path(execution int64) string {
	return filepath.Join(e.dir, strconv.FormatInt(execution, 10)+".json")
}

// writeFile writes a result atomically: a crash leaves the whole file, or a temporary one that readResults removes.
func (e *executor) writeFile(res result) error {
	data, _ := json.Marshal(res) // cannot fail
	path := e.path(res.Execution)
	if err := os.WriteFile(path+".tmp", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

func (e *executor) removeFile(execution int64) {
	if err := os.Remove(e.path(execution)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		// The next process delivers the result again, which changes nothing.
		e.cfg.Log.Warn("a delivered result cannot be removed", "err", err)
	}
}

// readResults holds the results that the previous process left on disk. It sets unreadable files aside.
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
			res, readErr := parseResult(os.ReadFile(path))
			if readErr == nil && path == e.path(res.Execution) {
				e.held[res.Execution] = &held{result: res, size: len(res.Output), stored: true}
				e.held[res.Execution].Output = nil
				e.taken.add(res.Execution)
				e.due = append(e.due, res.Execution)
				continue
			}
			e.cfg.Log.Error("a result on disk cannot be read and is set aside", "file", path, "err", readErr)
			err = os.Rename(path, path+".bad")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// parseResult parses what writeFile wrote, if it could be read.
func parseResult(data []byte, err error) (res result, _ error) {
	if err == nil {
		err = json.Unmarshal(data, &res)
	}
	if err != nil {
		return result{}, err
	}
	return res, res.check()
}

// ---- What a job's executor_config means

// envEntries returns the entries of executor_config.env, NAME=value with commas in between; \, is a comma in a value.
func envEntries(config map[string]string) []string {
	const comma = "\xff" // which is not in UTF-8, as jobs are
	entries := strings.Split(strings.ReplaceAll(config["env"], `\,`, comma), ",")
	for i, entry := range entries {
		entries[i] = strings.ReplaceAll(entry, comma, ",")
	}
	return slices.DeleteFunc(entries, func(entry string) bool { return entry == "" })
}

// bodyPattern compiles an expectBody. It checks the size first, because 22 kB can compile to 500 MB.
func bodyPattern(pattern string) (*regexp.Regexp, error) {
	tree, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return nil, fmt.Errorf("executor_config.expectBody: is not a regular expression: %s", err.(*syntax.Error).Code)
	}
	if patternSize(tree) > patternMax {
		return nil, fmt.Errorf("executor_config.expectBody: compiles to more than %d instructions; "+
			"write it with fewer repetitions", patternMax)
	}
	return regexp.Compile(pattern)
}

// patternSize returns an upper bound of the instructions that an expression compiles to, without the two that all have.
func patternSize(tree *syntax.Regexp) int {
	n := 1
	switch tree.Op {
	case syntax.OpLiteral:
		n = len(tree.Rune)
	case syntax.OpConcat:
		n = 0
	case syntax.OpCapture:
		n = 2
	case syntax.OpAlternate:
		n = len(tree.Sub) - 1
	}
	for _, sub := range tree.Sub {
		n += patternSize(sub)
	}
	return n * max(1, tree.Min, tree.Max) // of a repetition
}

// parseLimits returns the limits of a shell job: its timeout, zero for none; the time between TERM and KILL; and the
// bytes of memory that it may use, zero for no limit.
func parseLimits(config map[string]string) (timeout, grace time.Duration, memory int64, err error) {
	bad := func(setting, want string) error {
		return fmt.Errorf("executor_config.%s: %q is not a %s", setting, config[setting], want)
	}
	if timeout, err = time.ParseDuration(cmp.Or(config["timeout"], "0s")); err != nil || timeout < 0 {
		return 0, 0, 0, bad("timeout", `duration such as "90s" or "1h30m"`)
	}
	grace, err = time.ParseDuration(cmp.Or(config["kill_timeout"], killGrace.String()))
	if err != nil || grace < 0 || grace > killGraceMax {
		return 0, 0, 0, bad("kill_timeout", `duration such as "30s" of at most 10m`)
	}
	if config["mem_limit"] != "" {
		if memory = parseBytes(config["mem_limit"]); memory == 0 {
			return 0, 0, 0, bad("mem_limit", `size such as "1048576" or "512MB"`)
		}
	}
	return timeout, grace, memory, nil
}

// sizePattern is a decimal number, perhaps with a fraction, and a unit of B, K, KB, M, MB, G, GB, T or TB in any case.
var sizePattern = regexp.MustCompile(`^\s*([0-9.]+)\s*([KMGT]?)B?\s*$`)

// parseBytes reads a size, whose units are powers of 1,024. It returns zero for anything else.
func parseBytes(s string) int64 {
	if m := sizePattern.FindStringSubmatch(strings.ToUpper(s)); m != nil {
		n, err := strconv.ParseFloat(m[1], 64)
		n = math.Ldexp(n, 10*strings.Index(" KMGT", cmp.Or(m[2], " ")))
		if err == nil && n < math.MaxInt64/2 {
			return int64(n)
		}
	}
	return 0
}
