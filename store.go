// The store owns everything that survives the process: one SQLite file with the replicated log, this server's vote, and
// the state that applying the log has made.
//
// Invariants:
//
//  1. One goroutine, the driver's writer, calls write. Readers use connections of their own, which cannot write, and
//     never wait.
//  2. write is one transaction. If it logs something, synchronous is FULL: when it returns, term, vote and entries
//     survive a power cut. If it only applies, synchronous is NORMAL: what a power cut takes is applied again from the
//     log, because the applied index goes with it.
//  3. Applying is a function of (state, command). It reads no clock, no chance and no environment; what needs those
//     stands in the command.
//  4. Keys of jobs and executions are made of the log index of their command, so none is ever used again.
//  5. After any error of a commit nothing is known about the disk; the error is fatal and a restart is the recovery.
//
// Its sections, in order: limits and errors, the schema, opening, transactions and readers, the log, commands and how
// they are applied, lists of jobs, executions, events and statistics, retention, ticks, access control and the audit
// trail, what the protocol saves, and snapshots.
package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"database/sql"
	_ "embed"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sync/singleflight"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

const (
	commandFormat   = 3       // what apply does with a command; raised whenever that changes
	commandBytesMax = 1 << 20 // largest entry: a transaction stays well under 100 ms
	applyBytesMax   = 1 << 20 // entries applied in one transaction, for the same reason
	ticksMax        = 1000    // decisions in one command
	rulesMax        = 100     // holds, and calendars: they are in memory
	childrenMax     = 1000    // of a job: one command makes a pending row for each
	ancestorsMax    = 64      // of a job: apply looks at them one by one

	logEntriesKept = 10_000    // before the applied index, for followers that were away
	logBytesKept   = 64 << 20  // or fewer entries, if these are large
	logBytesPinned = 256 << 20 // of the log that is kept while a follower still needs it
	logTrimSlack   = 1_000     // trimmed in steps of this many entries
	logTrimMax     = 10_000    // at the most, as a transaction is short

	noticesMax  = 10_000 // that wait for their receivers
	noticeBytes = 1_000  // of an output in a notice, at its end

	ticksKept  = 1_000 // newest skipped and missed ticks of a job that are kept one by one
	sliceRows  = 1_000 // rows that one command deletes at the most
	stagedRows = 200   // the same of staged jobs, which may be large
	tailBytes  = 4_000 // of an output, what can be read without the rest
	daysKept   = 366   // of daily statistics and daily tick counts

	auditFieldMax   = 10_000  // bytes of a field's JSON that the audit trail keeps; of a longer one it keeps the length
	auditScanMax    = 20_000  // rows of it that a search looks at, newest first
	auditRowBytes   = 150     // of a row beside its texts
	auditSliceBytes = 4 << 20 // of it that one command deletes at the most
	nanosPerDay     = int64(24 * time.Hour)

	lockPatience = time.Second // see lockDir
	lockPause    = 10 * time.Millisecond

	readerConns  = 4   // SQLite readers do not share a connection; more than the cores brings nothing
	readStmtsMax = 128 // statements that are kept prepared for them

	// A list is read in parts that take a few MB, however long it is.
	partJobs  = 16      // each of up to 1 MiB
	partAudit = 16      // rows of the audit trail, each of up to about 400 kB
	partBytes = 2 << 20 // of outputs

	never = math.MinInt64 // as a time: no next tick
)

var (
	errLocked    = errors.New("another belfry process uses this data directory; stop it, or choose another --data-dir")
	errMalformed = errors.New("malformed message")
	errNotVoter  = errors.New("this server votes in no cluster, so there is nothing to recover; " +
		"use the data directory of one that did")
	errNewer = errors.New("this database was written by a newer belfry; " +
		"run that version, or restore a backup made by this one")
	errOlder = errors.New("this database was written by a test version of belfry; export the jobs with that version, " +
		"and restore them into a new --data-dir")
	errNoWAL = errors.New("a server that used belfry.db ended without closing it, and its write-ahead log " +
		"belfry.db-wal is missing, with the last writes that it acknowledged: put that file back, " +
		"or restore a backup; to remove belfry.db-open accepts the file as it is, which is right " +
		"if \"sqlite3 belfry.db\" has written the log into it")
)

// A refusal is what apply says of a command that does not fit the state. It changes nothing, on any server.
type refusal string

func (r refusal) Error() string { return string(r) }

const (
	errNoJob       = refusal("no such job")
	errNoExecution = refusal("no such execution")
	errConflict    = refusal("the job was changed at the same time; try again")
	errRev         = refusal("Belfry-Rev: the job has changed since it had this number; " +
		"read it again and repeat the change")
	errUndecided   = refusal("a tick of the job is due and not yet decided; try again")
	errHasChildren = refusal("other jobs name this one as parent_job; delete them, or give them another parent, first")
	errParent      = refusal("parent_job: no job has that name")
	errParentCycle = refusal("parent_job: the job would be its own ancestor")
	errChildren    = refusal("parent_job: that job has 1000 dependent jobs, and cannot have more; " +
		"let some depend on one of these")
	errAncestors = refusal("parent_job: more than 64 jobs would stand above a job; " +
		"let it depend on one that is nearer to the top")
	errJobDisabled = refusal("the job is disabled; enable it first, or run it with ?force")
	errPaused      = refusal("submissions are paused: jobs can be created and updated again after POST /v1/unpause")
	errBuiltIn     = refusal("the policies admin, operator and viewer are built in and cannot be changed; " +
		"use another name")
	errNoPolicy     = refusal("no such policy")
	errNoToken      = refusal("no such token")
	errManaged      = refusal("there is a management token already; ask who has it for another")
	errBrokenOff    = refusal("the restore was broken off; send the file again")
	errNoRule       = refusal("it was not set")
	errRules        = refusal("there are 100 holds, or 100 calendars; take back one of them first")
	errNoCalendar   = refusal("skip_on: no calendar has that name; store it with PUT /v1/calendars/{name} first")
	errCalendarUsed = refusal("a job names the calendar in its skip_on; change that job first")
	errKeys         = refusal("the change makes more rows than one command may make; make it in parts")
)

// jobFields are a job's document and the columns computed from it, empty where it has no such field: what is searched,
// sorted by or read with each run.
const jobFields = `,
	name            TEXT    AS (doc ->> 'name') STORED,
	parent_job      TEXT    AS (coalesce(doc ->> 'parent_job', '')) STORED,
	disabled        INTEGER AS (coalesce(doc ->> 'disabled', 0)) STORED,
	armed           INTEGER AS (disabled = 0 AND parent_job = '') STORED, -- the scheduler fires it at its next tick
	concurrency     TEXT    AS (coalesce(doc ->> 'concurrency', '')) STORED,
	mutex           TEXT    AS (coalesce(doc ->> 'mutex', '')) STORED,
	delivery        TEXT    AS (coalesce(doc ->> 'delivery', '')) STORED,
	retries         INTEGER AS (coalesce(doc ->> 'retries', 0)) STORED,
	ephemeral       INTEGER AS (coalesce(doc ->> 'ephemeral', 0)) STORED,
	parent_on       TEXT    AS (coalesce(doc ->> 'parent_on', 'success')),
	disable_after   INTEGER AS (coalesce(doc ->> 'disable_after', 0)) STORED,
	displayname     TEXT    AS (coalesce(doc ->> 'displayname', '')),
	schedule        TEXT    AS (coalesce(doc ->> 'schedule', '')),
	timezone        TEXT    AS (coalesce(doc ->> 'timezone', '')),
	owner           TEXT    AS (coalesce(doc ->> 'owner', '')),
	owner_email     TEXT    AS (coalesce(doc ->> 'owner_email', '')) STORED,
	listens         INTEGER AS (doc -> 'notify' IS NOT NULL OR doc -> '$.processors.slack' IS NOT NULL
		OR doc -> '$.processors.email' IS NOT NULL) STORED, -- it names receivers of notices
	executor        TEXT    AS (coalesce(doc ->> 'executor', '')),
	tags            TEXT    AS (coalesce(doc -> 'tags', 'null')),
	metadata        TEXT    AS (coalesce(doc -> 'metadata', 'null')),
	executor_config TEXT    AS (coalesce(doc -> 'executor_config', 'null')),
	processors      TEXT    AS (coalesce(doc -> 'processors', '{}')),
	keep            INTEGER AS (coalesce(doc ->> 'keep', 0)) STORED,
	max_runtime     TEXT    AS (coalesce(doc ->> 'max_runtime', '')) STORED,
	max_silence     TEXT    AS (coalesce(doc ->> 'max_silence', '')) STORED,
	starts_at       REAL    AS (coalesce(julianday(doc ->> 'starts_at'), 0)),
	expires_at      REAL    AS (coalesce(julianday(doc ->> 'expires_at'), 0)),
	doc             TEXT    NOT NULL`

// schemaVersion is raised whenever schema changes.
const schemaVersion = 11

var versionPragma = fmt.Sprintf("PRAGMA user_version = %d", schemaVersion)

// schema makes a new database. Times are Unix nanoseconds UTC; 0 means "not yet" unless a column says otherwise. The
// first two tables are this server's own and never leave it; all others are the replicated state.
const schema = `
CREATE TABLE server (
	id         TEXT    NOT NULL, -- random, made with the data directory
	cluster    TEXT    NOT NULL, -- id of the cluster that this server belongs to, '': none yet
	accepted   TEXT    NOT NULL, -- JSON of the bootstrapList that it accepted, once in its life; null: none
	term       INTEGER NOT NULL,
	vote       TEXT    NOT NULL, -- server voted for in term, '' for none
	base_index INTEGER NOT NULL, -- last entry that was dropped from the log
	base_term  INTEGER NOT NULL
) STRICT;

CREATE TABLE log (
	idx  INTEGER PRIMARY KEY,
	term INTEGER NOT NULL,
	kind INTEGER NOT NULL,
	data BLOB    NOT NULL
) STRICT;

CREATE TABLE cluster (
	id            TEXT    NOT NULL, -- random, made with the cluster; '': none yet
	applied_index INTEGER NOT NULL,
	applied_term  INTEGER NOT NULL,
	voters        TEXT    NOT NULL, -- JSON as of applied_index
	timezone      TEXT    NOT NULL, -- zone of jobs that name none; '': none yet
	paused        INTEGER NOT NULL
) STRICT;

CREATE TABLE jobs (
	id      INTEGER PRIMARY KEY,
	rev     INTEGER NOT NULL, -- log index of the last change
	deleted INTEGER NOT NULL, -- log index of the deletion, 0: alive` + jobFields + `
) STRICT;
CREATE UNIQUE INDEX jobs_name ON jobs (name) WHERE deleted = 0;
CREATE INDEX jobs_parent ON jobs (parent_job, name) WHERE parent_job <> '' AND deleted = 0;
CREATE INDEX jobs_watched ON jobs (id) WHERE deleted = 0 AND (max_runtime <> '' OR max_silence <> '');
CREATE INDEX jobs_keep ON jobs (id) WHERE keep <> 0;
CREATE INDEX jobs_disabled ON jobs (id) WHERE disabled AND deleted = 0;
CREATE INDEX jobs_mutex ON jobs (mutex) WHERE mutex <> '';
CREATE INDEX jobs_deleted ON jobs (id) WHERE deleted <> 0;

-- What changes with each run, beside the wide rows that do not.
CREATE TABLE job_state (
	job           INTEGER PRIMARY KEY,
	next          INTEGER NOT NULL, -- the least integer: never
	fires         INTEGER NOT NULL, -- 1: at next, as the job is armed
	fired         INTEGER NOT NULL, -- due time of the last decided tick, or when next was computed otherwise
	open          INTEGER NOT NULL DEFAULT 0, -- unfinished executions, and pending rows of their groups
	failures      INTEGER NOT NULL DEFAULT 0, -- groups in a row that have failed since it was enabled
	broken        INTEGER NOT NULL DEFAULT 0, -- 1: of its groups that succeeded or failed the last has failed
	kept          INTEGER NOT NULL DEFAULT 0, -- finished executions on record
	success_count INTEGER NOT NULL DEFAULT 0,
	error_count   INTEGER NOT NULL DEFAULT 0,
	last_success  INTEGER NOT NULL DEFAULT 0,
	last_error    INTEGER NOT NULL DEFAULT 0,
	status        TEXT    NOT NULL DEFAULT '',
	spared        INTEGER NOT NULL DEFAULT 0, -- of the kept those without success that the last trim left
	unplaced      INTEGER NOT NULL DEFAULT 0, -- 1: no node matched its last tick
	day           INTEGER NOT NULL DEFAULT 0, -- of its last tick, UTC, since 1970
	day_ticks     INTEGER NOT NULL DEFAULT 0, -- of that day so far
	day_overlaps  INTEGER NOT NULL DEFAULT 0, -- ticks among them that were skipped because a run went on
	heard         INTEGER NOT NULL, -- when it last succeeded, or was stored; the least integer: there was a notice
	overdue       INTEGER NOT NULL DEFAULT 0, -- newest execution with a notice that it is overdue
	notices_lost  INTEGER NOT NULL DEFAULT 0, -- notices that reached no receiver
	ran           INTEGER NOT NULL DEFAULT 0, -- ticks with that outcome since the job was made, as the three below
	late          INTEGER NOT NULL DEFAULT 0,
	skipped       INTEGER NOT NULL DEFAULT 0,
	missed        INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX job_state_due ON job_state (next) WHERE fires;
CREATE INDEX job_state_failing ON job_state (job) WHERE failures > 0;
CREATE INDEX job_state_status ON job_state (status);

CREATE TABLE executions (
	id          INTEGER PRIMARY KEY,
	job         INTEGER NOT NULL,
	grp         INTEGER NOT NULL, -- id of the first execution of the group
	slot        INTEGER NOT NULL, -- place in the group; retries keep it
	attempt     INTEGER NOT NULL,
	node        TEXT    NOT NULL,
	incarnation INTEGER NOT NULL, -- process of the node that it was given to
	cause       TEXT    NOT NULL, -- tick, child, retry or hand
	due         INTEGER NOT NULL, -- when the tick fell due, or the run was asked for
	late        INTEGER NOT NULL, -- 1: a tick that was caught up after an outage
	started     INTEGER NOT NULL, -- until it is finished: when it was decided
	finished    INTEGER NOT NULL,
	outcome     TEXT    NOT NULL, -- '' until it is finished
	dropped     INTEGER NOT NULL, -- bytes of output that were not kept
	exit_code   INTEGER,          -- of its first process; NULL: it did not exit by itself
	signal      TEXT    NOT NULL, -- that ended that process
	cpu         INTEGER NOT NULL, -- nanoseconds that it and its children took
	memory      INTEGER NOT NULL, -- bytes at the peak of the largest; 0: not known
	params      TEXT    NOT NULL  -- JSON object that a run by hand was given, or null
) STRICT;
CREATE INDEX executions_job ON executions (job, id);
CREATE INDEX executions_group ON executions (grp) WHERE grp <> id;
CREATE INDEX executions_unfinished ON executions (job, grp, node) WHERE finished = 0;
CREATE INDEX executions_bad ON executions (id) WHERE outcome NOT IN ('', 'success'); -- few
CREATE INDEX executions_job_bad ON executions (job, id) WHERE outcome NOT IN ('', 'success');

-- The reason of a failure and the end, at most 4,000 bytes each, are read without the pages of the rest.
CREATE TABLE outputs (
	execution INTEGER PRIMARY KEY,
	reason    BLOB NOT NULL, -- the output begins with it
	tail      BLOB NOT NULL,
	head      BLOB NOT NULL -- what comes between
) STRICT;

-- What must still follow from something that ended, and what could not start when it was due and waits for something to
-- be free. Of those that wait for the same thing the first asked for starts first.
CREATE TABLE pending (
	id        INTEGER PRIMARY KEY,
	cause     TEXT    NOT NULL, -- as of an execution; slot: one of a group; children: of the job, whose group is over
	job       INTEGER NOT NULL,
	grp       INTEGER NOT NULL, -- of a retry and a slot
	slot      INTEGER NOT NULL,
	attempt   INTEGER NOT NULL,
	node      TEXT    NOT NULL, -- that a retry and a slot go to; of children, how the group ended
	due       INTEGER NOT NULL, -- not before
	asked     INTEGER NOT NULL, -- due of the group; of a child the end of its parent
	late      INTEGER NOT NULL, -- as of an execution
	params    TEXT    NOT NULL, -- as of an execution
	forced    INTEGER NOT NULL, -- of a run by hand: it starts also if its job is disabled or held
	waits_for TEXT    NOT NULL  -- '': for its time alone; else "job ID", "mutex NAME" or "node NAME"
) STRICT;
CREATE INDEX pending_job ON pending (job);
CREATE INDEX pending_waits ON pending (waits_for, asked, id) WHERE waits_for <> '';
CREATE INDEX pending_due ON pending (due) WHERE waits_for = '';
CREATE INDEX pending_group ON pending (grp) WHERE grp <> 0;

-- What receivers have not yet got.
CREATE TABLE notices (
	id       INTEGER PRIMARY KEY, -- in the order of what happened
	event    TEXT    NOT NULL,
	job      INTEGER NOT NULL, -- 0: it is of the cluster
	receiver TEXT    NOT NULL, -- as in courier.deliver
	made     INTEGER NOT NULL,
	doc      TEXT    NOT NULL  -- JSON of a notice
) STRICT;
CREATE INDEX notices_run ON notices (id) WHERE event IN ('start', 'end'); -- these are given up first

-- What fell due and did not run. What ran stands in executions.
CREATE TABLE ticks (
	id      INTEGER PRIMARY KEY,
	job     INTEGER NOT NULL,
	cause   TEXT    NOT NULL,
	due     INTEGER NOT NULL, -- of the first
	until   INTEGER NOT NULL, -- of the last
	count   INTEGER NOT NULL,
	outcome TEXT    NOT NULL, -- skipped or missed
	reason  TEXT    NOT NULL
) STRICT;
CREATE INDEX ticks_job ON ticks (job, due);

-- Outcomes of ticks that are no longer kept one by one.
CREATE TABLE tick_days (
	job     INTEGER NOT NULL,
	day     INTEGER NOT NULL, -- of the due time, UTC, since 1970
	ran     INTEGER NOT NULL,
	late    INTEGER NOT NULL,
	skipped INTEGER NOT NULL,
	missed  INTEGER NOT NULL,
	PRIMARY KEY (job, day)
) STRICT, WITHOUT ROWID;
CREATE INDEX tick_days_day ON tick_days (day);

-- Jobs of restores, invisible until all are moved into jobs at once. What a restore leaves here goes with later trims.
CREATE TABLE staged (
	id            INTEGER PRIMARY KEY, -- of the job, if its name is new; ids of a restore are in the order of its file
	restore       INTEGER NOT NULL,    -- log index of its first slice
	next          INTEGER NOT NULL,
	success_count INTEGER NOT NULL,    -- at least; so are the following
	error_count   INTEGER NOT NULL,
	last_success  INTEGER NOT NULL,
	last_error    INTEGER NOT NULL` + jobFields + `
) STRICT;
CREATE INDEX staged_restore ON staged (restore, name);

-- The nodes that were there, so that a new leader knows for whom it may wait.
CREATE TABLE nodes (
	name   TEXT    PRIMARY KEY,
	tags   TEXT    NOT NULL, -- JSON object
	failed INTEGER NOT NULL  -- when it failed, 0: it is there
) STRICT, WITHOUT ROWID;

-- What is set for the whole cluster: holds by their metadata, calendars and drained nodes by name.
CREATE TABLE rules (
	kind TEXT NOT NULL, -- hold, calendar or drain
	name TEXT NOT NULL,
	doc  TEXT NOT NULL, -- JSON object
	PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE policies (
	name  TEXT PRIMARY KEY,
	rules TEXT NOT NULL -- JSON as it was sent
) STRICT, WITHOUT ROWID;

CREATE TABLE requests (
	idx     INTEGER PRIMARY KEY, -- log index of the command
	id      TEXT NOT NULL UNIQUE,
	answer  TEXT NOT NULL,       -- what the caller is answered, '' if it gave no key of its own
	refused TEXT NOT NULL        -- why nothing was started, '' if something was
) STRICT;

CREATE TABLE stats (
	day     INTEGER PRIMARY KEY, -- of the end, UTC, since 1970
	success INTEGER NOT NULL,
	failed  INTEGER NOT NULL
) STRICT;

CREATE TABLE tokens (
	accessor TEXT    PRIMARY KEY,
	name     TEXT    NOT NULL,
	type     TEXT    NOT NULL, -- management or client
	policies TEXT    NOT NULL, -- JSON list of names, or null
	hash     BLOB    NOT NULL, -- SHA-256 of the secret
	created  INTEGER NOT NULL,
	expires  INTEGER NOT NULL  -- 0: never
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX tokens_hash ON tokens (hash);

-- Who changed what.
CREATE TABLE audit (
	id      INTEGER PRIMARY KEY,
	at      INTEGER NOT NULL,
	total   INTEGER NOT NULL, -- bytes of the trail up to here, since it was empty last
	actor   TEXT    NOT NULL, -- accessor of a token, or as in commands
	name    TEXT    NOT NULL, -- that the token had, '': none
	address TEXT    NOT NULL, -- of the client, without port
	action  TEXT    NOT NULL,
	job     TEXT    NOT NULL, -- its name, '': none
	object  TEXT    NOT NULL, -- what else was changed, '': nothing
	before  TEXT    NOT NULL, -- JSON object of what the change replaced; null: nothing was there
	after   TEXT    NOT NULL  -- JSON object of what it was replaced by; null: nothing is there now
) STRICT;
CREATE INDEX audit_at ON audit (at); -- of a clock that was wrong, ids and times are in different orders
CREATE INDEX audit_job ON audit (job, at) WHERE job <> '';
`

// replicated are the tables whose content depends on the applied index alone, in the order of a dump.
var replicated = []string{"cluster", "jobs", "job_state", "executions", "outputs", "pending", "notices", "ticks",
	"tick_days", "staged", "nodes", "rules", "policies", "tokens", "requests", "stats", "audit"}

// store is one open database. Its methods are safe for readers at any time; write and install belong to one goroutine.
type store struct {
	path    string
	lock    *os.File // locked while the database is open
	reader           // of the leader and of replication
	clients reader   // for requests of clients, which therefore never delay the leader or replication

	// Set by the writer, read by anybody.
	shown   atomic.Pointer[settings]
	applied atomic.Uint64 // log index up to which readers see the state
	listing atomic.Uint64 // grows when a change that an API call made, and lists show, was committed
	changes atomic.Uint64 // grows when anything was committed that lists show

	lists  jobLists
	sums   summaries
	docs   jobDocs
	events events
	stats  stats // of what was applied since the start

	// Owned by the writer.
	db        *sql.DB
	conn      *sql.Conn
	stmts     map[string]*sql.Stmt
	sync      string             // synchronous mode in force on conn
	unapplied []entry            // in the log, in order, not yet applied
	careful   bool               // each command can be undone by itself
	noted                        // of the transaction
	failed    func(executionRow) // called for each failure after the transaction, or nil. Fixed once the writer runs
	logFirst  uint64             // first index in the log table
	logEnds   []int              // running sum of the sizes of its entries, beginning with what came before them
	kept      logRetention       // fixed once the writer runs
	turn      atomic.Uint64      // grows with each transaction of the writer; odd while a durable one is under way
	pinned    atomic.Uint64      // first entry of the log that a follower needs, 0: none
	format    byte               // of commands, the latest that this server applies; fixed once the writer runs
	halted    atomic.Bool        // the next entry is of a later format: nothing is applied any more

	// disk runs a transaction of the writer, a durable one with synchronous=FULL; nil: directly. The simulation sets
	// one that is slow, fails, or records how much of the file a power cut leaves. Fixed once the writer runs.
	disk func(durable bool, tx func() error) error
}

// noted is what the commands of a transaction have changed beside the tables, for published. It is undone with them.
type noted struct {
	settings settings
	listed   bool           // lists show it, and an API call made it
	touched  []int64        // jobs, as the API shows them
	allNew   bool           // or any of them
	observed bool           // somebody watched when the transaction began
	marks    []mark         // events of rows, if observed
	failures []executionRow // that ended without success
	counts   []func(*stats) // update the statistics once it has committed
}

// settings are what the cluster table says, for those who ask with every request.
type settings struct {
	paused bool
	rules
	timezone string // of the cluster, "" if there is none yet
	notices  int    // rows of that table
}

// Kinds of rules.
const (
	ruleHold     = "hold"     // keeps jobs from starting; its name is the metadata
	ruleCalendar = "calendar" // days on which the jobs that name it in skip_on do not run
	ruleDrain    = "drain"    // keeps runs from starting on the node that it names
)

// A rule is set by a client for the whole cluster.
type rule struct {
	Kind     string            `json:"-"`
	Name     string            `json:"name,omitempty"`
	Why      string            `json:"why,omitempty"`
	Metadata map[string]string `json:"metadata,omitempty"` // of the jobs that are held; nil: all
	By       string            `json:"by,omitempty"`
	Since    time.Time         `json:"since,omitzero"`
	Dates    []string          `json:"dates,omitempty"`    // as in 2026-12-25, in order
	Timezone string            `json:"timezone,omitempty"` // empty: the cluster's
}

// rules are by kind and name. Nobody changes them.
type rules map[string]map[string]rule

// held returns why jobs with such metadata do not start, "" if they do.
func (r rules) held(metadata map[string]string) string {
	for _, name := range sortedKeys(r[ruleHold]) {
		h, covers := r[ruleHold][name], true
		for k, v := range h.Metadata {
			got, ok := metadata[k]
			covers = covers && ok && got == v
		}
		if covers {
			return fmt.Sprintf("held by %s since %s: %s", h.By, h.Since.Format(time.RFC3339), h.Why)
		}
	}
	return ""
}

// list returns the rules of a kind by name.
func (r rules) list(kind string) []rule {
	list := []rule{}
	for _, name := range sortedKeys(r[kind]) {
		list = append(list, r[kind][name])
	}
	return list
}

// logRetention is how much of the log is kept before the applied index.
type logRetention struct {
	entries int
	bytes   int
	pinned  int // bytes up to which the log is kept as long as it is pinned
	slack   int // trimmed in steps of this many entries
}

// openStore opens the database in dir, or makes both, and reads the log's entries that are not applied. Errors are one
// sentence that says what to do.
func openStore(dir string) (*store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("--data-dir: cannot make the directory, choose one that this user may write: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, fmt.Errorf("--data-dir %s: %w", dir, err)
	}
	s := &store{path: filepath.Join(dir, "belfry.db"), lock: lock, stmts: map[string]*sql.Stmt{}, format: commandFormat,
		kept: logRetention{logEntriesKept, logBytesKept, logBytesPinned, logTrimSlack}}
	if err := s.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("--data-dir %s: %w", dir, err), s.close())
	}
	return s, nil
}

// lockDir keeps a second process out of dir. The kernel unlocks it when the process ends; but a child that was just
// forked keeps it locked until it executes another program, and a start right after a crash must wait for that.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot write there, choose a directory that this user may write: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	for since := time.Now(); errors.Is(err, syscall.EWOULDBLOCK) && time.Since(since) < lockPatience; {
		time.Sleep(lockPause)
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	}
	if err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errLocked
		}
		return nil, fmt.Errorf("cannot lock it: %w", err)
	}
	return f, nil
}

// dsn returns the data source name of a file, with its pragmas: the pool sets them on each connection that it opens.
func dsn(path string, pragmas ...string) string {
	name := "file:" + uriEscaper.Replace(path) + "?_pragma=busy_timeout(10000)&_txlock=immediate"
	for _, p := range pragmas {
		name += "&_pragma=" + p
	}
	return name
}

// uriEscaper makes a path a URI file name as SQLite reads it.
var uriEscaper = strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23")

// removeFile removes a file, if it is there.
func removeFile(name string) error { return unlessMissing(os.Remove(name)) }

// unlessMissing returns an error that says anything but that a file does not exist.
func unlessMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// create makes an empty database, if there is none. It gets its name when it is whole, so an empty file under that name
// was always left by something else.
func (s *store) create() error {
	switch info, err := os.Stat(s.path); {
	case err == nil && info.Size() == 0:
		return fmt.Errorf("%s is empty, as when the disk is full while a backup is written; "+
			"put a whole one there, or delete it for a new database", filepath.Base(s.path))
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	fresh := s.path + ".new"
	for _, name := range []string{fresh, s.path + "-wal", s.path + "-shm", s.marker()} { // of a former database
		if err := removeFile(name); err != nil {
			return err
		}
	}
	err := os.WriteFile(fresh, nil, 0o600)
	if err == nil {
		err = execFile(context.Background(), fresh, "PRAGMA journal_mode = off; PRAGMA user_version = 0")
	}
	if err != nil {
		return fmt.Errorf("cannot make the database: %w", err)
	}
	return os.Rename(fresh, s.path)
}

// restrict lets only this user read the database, and so the new files that SQLite makes beside it.
func (s *store) restrict() error {
	for _, name := range []string{s.path, s.path + "-wal", s.path + "-shm"} {
		info, err := os.Stat(name)
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			err = os.Chmod(name, 0o600)
		}
		if unlessMissing(err) != nil {
			return fmt.Errorf("cannot keep other users from reading %s, give it to the user that belfry runs as: %w",
				filepath.Base(name), err)
		}
	}
	return nil
}

func (s *store) open() error {
	return inOrder(s.create, s.restrict, s.checkWAL, s.connect, s.migrate, s.makeMarker, s.loadLog)
}

// inOrder takes steps up to the first error.
func inOrder(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// connect opens the connections. The write-ahead log is checkpointed each 4,000 pages (16 MB): often enough to stay
// small, rarely enough that commits do not wait for it. What a savepoint may have to undo is kept in memory.
func (s *store) connect() (err error) {
	s.db, err = sql.Open("sqlite", dsn(s.path, "journal_mode(wal)", "synchronous(full)", "wal_autocheckpoint(4000)",
		"cache_size(-32000)", "temp_store(memory)"))
	if err != nil {
		return err
	}
	if s.conn, err = s.db.Conn(context.Background()); err != nil {
		return fmt.Errorf("cannot read the database; if belfry.db is damaged, restore a backup: %w", err)
	}
	s.sync = "FULL"
	name := dsn(s.path, "query_only(1)", "cache_size(-4000)")
	return errors.Join(s.reader.open(name), s.clients.open(name))
}

// marker is a file that exists while the write-ahead log has what belfry.db does not: it is made after the first
// commit of a process, and removed before the last connection closes, which writes the log into the database.
func (s *store) marker() string { return s.path + "-open" }

// checkWAL refuses a database whose write-ahead log is missing: SQLite would open it in an old state without an error.
func (s *store) checkWAL() error {
	if _, err := os.Stat(s.marker()); err != nil {
		return unlessMissing(err)
	}
	info, err := os.Stat(s.path + "-wal")
	if errors.Is(err, os.ErrNotExist) || err == nil && info.Size() == 0 {
		return errNoWAL
	}
	return err
}

func (s *store) makeMarker() error {
	// An UPDATE that changes nothing would leave the write-ahead log empty, as if it were missing.
	err := inOrder(func() error { return s.update("FULL", func() error { return s.exec(versionPragma) }) },
		func() error { return os.WriteFile(s.marker(), nil, 0o600) },
		func() error { return syncDir(filepath.Dir(s.path)) })
	if err != nil {
		return fmt.Errorf("cannot write beside the database, check the disk: %w", err)
	}
	return nil
}

// syncDir makes what was created or removed in a directory survive a power cut.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// migrate gives a new database its schema, and one without ids its ids.
func (s *store) migrate() error {
	var version, servers int
	if err := s.get("PRAGMA user_version", nil, &version); err != nil {
		return fmt.Errorf("cannot read the database: %w", err)
	}
	switch {
	case version > schemaVersion:
		return errNewer
	case version == 0:
		err := s.update("FULL", func() error { return s.script(schema + versionPragma) })
		if err != nil {
			return fmt.Errorf("cannot make the tables: %w", err)
		}
	case version < schemaVersion:
		return errOlder
	}
	if err := s.get("SELECT count(*) FROM server", nil, &servers); err != nil || servers == 1 {
		return err
	}
	return s.update("FULL", s.enrol)
}

// enrol gives a database without a server its id. A copy made by snapshot has state already: its log begins after that,
// and it belongs to no cluster, so that it cannot join the one it was copied from by mistake.
func (s *store) enrol() error {
	return cmp.Or(
		s.exec("INSERT INTO cluster SELECT '', 0, 0, '[]', '', 0 WHERE NOT EXISTS (SELECT * FROM cluster)"),
		s.exec(`UPDATE cluster SET id = '', voters = '[]',
			applied_index = applied_index + iif(applied_index = 0, 0, ?)`, lifeGap),
		s.exec(`INSERT INTO server SELECT ?, '', 'null', applied_term, '', applied_index, applied_term
			FROM cluster`, rand.Text()))
}

func (s *store) loadSettings() error {
	now := settings{rules: rules{ruleHold: {}, ruleCalendar: {}, ruleDrain: {}}}
	type row struct {
		kind, name string
		rule       rule
	}
	list, err := rowsOf[row](s.each, "SELECT kind, name, doc FROM rules")
	for _, r := range list {
		now.rules[r.kind][r.name] = r.rule
	}
	s.settings = now
	return cmp.Or(err, s.get("SELECT paused, timezone, (SELECT count(*) FROM notices) FROM cluster", nil,
		&s.settings.paused, &s.settings.timezone, &s.settings.notices))
}

// showSettings shows readers the settings as the last transaction left them.
func (s *store) showSettings() {
	now := s.settings
	s.shown.Store(&now)
}

// loadLog reads the sizes of the log's entries and those not yet applied.
func (s *store) loadLog() error {
	var applied uint64
	err := s.get("SELECT applied_index, base_index + 1 FROM cluster, server", nil, &applied, &s.logFirst)
	if err = cmp.Or(err, s.loadSettings()); err != nil {
		return err
	}
	s.applied.Store(applied)
	s.showSettings()
	s.logEnds, err = rowsOf[int](s.each, `SELECT 0 UNION ALL SELECT * FROM
		(SELECT sum(length(data)) OVER (ORDER BY idx) FROM log ORDER BY idx)`)
	if err != nil {
		return err
	}
	s.unapplied, err = s.entries(applied+1, math.MaxInt64)
	return err
}

// close ends all use of the database. The caller has stopped the writer.
func (s *store) close() error {
	var errs []error
	for _, st := range s.stmts {
		errs = append(errs, st.Close())
	}
	errs = append(errs, s.reader.close(), s.clients.close()) // later reads fail
	if s.conn != nil {
		errs = append(errs, removeFile(s.marker()), syncDir(filepath.Dir(s.path)), s.conn.Close())
	}
	if s.db != nil {
		errs = append(errs, s.db.Close())
	}
	return errors.Join(append(errs, s.lock.Close())...)
}

// update runs fn in one transaction of the writer, synchronous FULL or NORMAL. An error of fn rolls back.
func (s *store) update(mode string, fn func() error) error {
	if durable := mode == "FULL"; durable {
		s.turn.Add(1)
		defer s.turn.Add(1)
	} else {
		defer s.turn.Add(2)
	}
	if s.disk == nil {
		return s.transact(mode, fn)
	}
	return s.disk(mode == "FULL", func() error { return s.transact(mode, fn) })
}

func (s *store) transact(mode string, fn func() error) error {
	if s.sync != mode {
		if err := s.script("PRAGMA synchronous = " + mode); err != nil {
			return err
		}
		s.sync = mode
	}
	if err := s.exec("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	if err := fn(); err != nil {
		return errors.Join(err, s.exec("ROLLBACK"))
	}
	return s.exec("COMMIT")
}

// script runs statements that are not kept prepared.
func (s *store) script(statements string, args ...any) error {
	_, err := s.conn.ExecContext(context.Background(), statements, args...)
	return err
}

// rowsOf returns the rows of a query. The columns of a row go into a T, or into the fields of a T that is a struct, in
// order; fields after the last column stay zero. Columns of maps and lists are JSON.
func rowsOf[T any](each rowReader, query string, args ...any) ([]T, error) {
	list := []T{}
	var row T
	dest := destinations(reflect.ValueOf(&row).Elem())
	err := each(query, args, func(scan scanner) error {
		row = *new(T)
		err := scan(dest...)
		list = append(list, row)
		return err
	})
	return list, err
}

// A rowReader calls fn for each row of a query.
type rowReader func(query string, args []any, fn func(scanner) error) error

// destinations are what v is scanned into.
func destinations(v reflect.Value) (dest []any) {
	p := reflect.NewAt(v.Type(), v.Addr().UnsafePointer()).Interface() // of unexported fields too
	switch p := p.(type) {
	case *uint64:
		return []any{(*unsigned)(p)}
	case *[]string, *[]server, *map[string]string, *job, *rule, **bootstrapList:
		return []any{jsonColumn{p}}
	}
	if v.Kind() != reflect.Struct {
		return []any{p}
	}
	for i := range v.NumField() {
		dest = append(dest, destinations(v.Field(i))...)
	}
	return dest
}

// unsigned reads a uint64 out of a column of int64.
type unsigned uint64

// Scan implements sql.Scanner.
func (u *unsigned) Scan(column any) error {
	n, ok := column.(int64)
	if *u = unsigned(n); !ok {
		return fmt.Errorf("%v is no integer", column)
	}
	return nil
}

// jsonColumn reads a column of JSON into what v points to.
type jsonColumn struct{ v any }

// Scan implements sql.Scanner.
func (c jsonColumn) Scan(column any) error {
	text, ok := column.(string)
	if !ok {
		return fmt.Errorf("%v is no text", column)
	}
	return json.Unmarshal([]byte(text), c.v)
}

// jsonText is how lists and maps are stored, and bound to statements that read them with json_each: a nil one is null.
func jsonText(v any) string {
	doc, _ := json.Marshal(v) // integers and strings always marshal
	return string(doc)
}

// only returns the first row of a list, or the error none if there is no row.
func only[T any](list []T, err, none error) (row T, _ error) {
	if err == nil && len(list) == 0 {
		err = none
	}
	if err != nil {
		return row, err
	}
	return list[0], nil
}

// rowOf returns the first row of a query, as rowsOf does, or the error none if there is no row.
func rowOf[T any](each rowReader, none error, query string, args ...any) (T, error) {
	list, err := rowsOf[T](each, query, args...)
	return only(list, err, none)
}

// valueOf is rowOf of a query that always has a row.
func valueOf[T any](each rowReader, query string, args ...any) (T, error) {
	return rowOf[T](each, sql.ErrNoRows, query, args...)
}

// A scanner reads the columns of the current row into as many of dest.
type scanner func(dest ...any) error

// stmt returns the writer's prepared statement for query.
func (s *store) stmt(query string) (*sql.Stmt, error) {
	if st := s.stmts[query]; st != nil {
		return st, nil
	}
	st, err := s.conn.PrepareContext(context.Background(), query)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", query, err)
	}
	s.stmts[query] = st
	return st, nil
}

func (s *store) exec(query string, args ...any) error {
	_, err := s.execRows(query, args...)
	return err
}

// execRows is exec that returns how many rows were changed.
func (s *store) execRows(query string, args ...any) (int64, error) {
	st, err := s.stmt(query)
	if err != nil {
		return 0, err
	}
	res, err := st.Exec(args...)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", query, err)
	}
	return res.RowsAffected()
}

// get reads the one row of query as the writer sees it; sql.ErrNoRows if there is none.
func (s *store) get(query string, args []any, dest ...any) error {
	st, err := s.stmt(query)
	if err != nil {
		return err
	}
	return st.QueryRow(args...).Scan(dest...)
}

// each calls fn for each row of query as the writer sees it.
func (s *store) each(query string, args []any, fn func(scanner) error) error {
	st, err := s.stmt(query)
	if err != nil {
		return err
	}
	rows, err := st.Query(args...)
	return eachRow(rows, err, fn)
}

// errEnough, returned by fn, ends eachRow without an error.
var errEnough = errors.New("enough")

// errUnreadable is wrapped by the error of each read that SQLite fails.
var errUnreadable = errors.New("the server cannot read its database; look at its disk and at its log")

func eachRow(rows *sql.Rows, err error, fn func(scanner) error) error {
	if err != nil {
		return unreadable(err)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return err
	}
	scan := func(dest ...any) error { return rows.Scan(dest[:min(len(dest), len(columns))]...) }
	for rows.Next() {
		if err := fn(scan); errors.Is(err, errEnough) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return unreadable(rows.Err())
}

// unreadable is err as callers see it; nil if err is.
func unreadable(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", errUnreadable, err)
}

// A reader reads what is applied, over connections of its own that cannot write.
type reader struct {
	pool     *sql.DB
	tx       *sql.Tx // that all of it is read in; nil: each query reads the latest state
	mu       sync.Mutex
	prepared map[string]*sql.Stmt       // guarded by mu
	failed   atomic.Pointer[failedRead] // the last read that failed
}

func (s *reader) open(name string) (err error) {
	s.prepared = map[string]*sql.Stmt{}
	if s.pool, err = sql.Open("sqlite", name); err == nil {
		s.pool.SetMaxOpenConns(readerConns)
		s.pool.SetMaxIdleConns(readerConns)
	}
	return err
}

func (s *reader) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, st := range s.prepared {
		errs = append(errs, st.Close())
	}
	if s.pool != nil {
		errs = append(errs, s.pool.Close())
	}
	return errors.Join(errs...)
}

// stmt returns the prepared statement for query, or nil if readStmtsMax others are kept. Values are bound; but the
// conditions and orders of lists are part of the text, and clients can ask for any number of them.
func (s *reader) stmt(query string) (*sql.Stmt, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.prepared[query]
	if st != nil || len(s.prepared) >= readStmtsMax {
		return st, nil
	}
	st, err := s.pool.Prepare(query)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", query, err)
	}
	s.prepared[query] = st
	return st, nil
}

func (s *reader) query(query string, args []any) (*sql.Rows, error) {
	if s.tx != nil {
		return s.tx.Query(query, args...)
	}
	st, err := s.stmt(query)
	switch {
	case err != nil:
		return nil, err
	case st == nil:
		return s.pool.Query(query, args...)
	}
	return st.Query(args...)
}

// view reads the one row of query; sql.ErrNoRows if there is none.
func (s *reader) view(query string, args []any, dest ...any) error {
	found := false
	err := s.viewEach(query, args, func(scan scanner) error {
		found = true
		return scan(dest...)
	})
	if err == nil && !found {
		err = sql.ErrNoRows
	}
	return err
}

// viewEach calls fn for each row of query. It takes a connection, so fn must not wait.
func (s *reader) viewEach(query string, args []any, fn func(scanner) error) error {
	rows, err := s.query(query, args)
	if err = eachRow(rows, err, fn); err != nil {
		s.failed.Store(&failedRead{time.Now(), err})
	}
	return err
}

// atOnce calls fn with a reader that sees one state of the database.
func (s *reader) atOnce(fn func(*reader) error) error {
	tx, err := s.pool.BeginTx(context.Background(), &sql.TxOptions{ReadOnly: true})
	if err = unreadable(err); err != nil {
		s.failed.Store(&failedRead{time.Now(), err})
		return err
	}
	defer tx.Rollback()
	r := &reader{tx: tx}
	err = fn(r)
	if failed := r.failed.Load(); failed != nil {
		s.failed.Store(failed)
	}
	return err
}

// failedReadAge is for how long a failed read counts as failing reads.
const failedReadAge = time.Minute

type failedRead struct {
	at  time.Time
	err error
}

// readable returns why reads fail, or did lately: parts of a damaged database may still be readable.
func (s *store) readable(now time.Time) error {
	var n int
	const query = "SELECT (SELECT count(*) FROM (SELECT id FROM jobs LIMIT 1)) + applied_index FROM cluster"
	if err := s.view(query, nil, &n); err != nil {
		return err
	}
	for _, r := range []*reader{&s.reader, &s.clients} {
		if last := r.failed.Load(); last != nil && now.Sub(last.at) < failedReadAge {
			return last.err
		}
	}
	return nil
}

// ids reads a column of ids.
func (s *reader) ids(query string, args ...any) ([]int64, error) {
	return rowsOf[int64](s.viewEach, query, args...)
}

// A server is a name, unique among live servers, and a random id: a new disk under an old name is another server.
type server struct{ Name, ID string }

// An entryKind says who reads an entry.
type entryKind uint8

const (
	entryCommand entryKind = iota // the state machine
	entryNoop                     // nobody: a leader's first entry, which commits those before it (thesis 3.6.2)
	entryVoters                   // the protocol: Data is a JSON list of servers, in order of names
)

// An entry is one place in the log. Its Data must not be changed.
type entry struct {
	Index, Term uint64
	Kind        entryKind
	Data        []byte
}

// A position names an entry. Two logs with an entry at the same position are equal up to it (thesis 3.5). The zero
// position is in every log.
type position struct{ Index, Term uint64 }

// hardState is what a server must never forget. Vote is a server's id, or "" if it has not voted in Term.
type hardState struct {
	Term uint64
	Vote string
}

// A voterSet lists the voters from the entry at Index on, in order of names.
type voterSet struct {
	Index  uint64
	Voters []server
}

// A snapshot replaces all entries up to its position. The protocol needs only its end and the voters.
type snapshot struct {
	position
	Voters []server
}

// saved is what a server finds on its disk when it starts.
type saved struct {
	State   hardState
	Base    position   // last entry dropped from the log; zero: none
	Terms   []position // first entry of each run of equal terms after Base
	Last    uint64     // last entry of the log, Base.Index if it is empty
	Applied uint64     // by the state machine
	Voters  []voterSet // as of Applied, then one for each later voter entry
}

func compareServers(a, b server) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
}

func encodeVoters(list []server) []byte {
	return []byte(jsonText(slices.SortedFunc(slices.Values(list), compareServers)))
}

// decodeVoters accepts only what encodeVoters makes: the place in the list is a rank, so no name comes twice.
func decodeVoters(data []byte) ([]server, error) {
	var list []server
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("%w: voters: %w", errMalformed, err)
	}
	return list, checkVoters(list)
}

func checkVoters(list []server) error {
	for i, v := range list {
		if v.Name == "" || v.ID == "" || i > 0 && v.Name <= list[i-1].Name {
			return fmt.Errorf("%w: voters: not in order of names", errMalformed)
		}
	}
	if len(list) == 0 {
		return fmt.Errorf("%w: no voters", errMalformed)
	}
	return nil
}

// write is one transaction of the log and the state. It notes term and vote, nil if they are as they were; appends
// entries, replacing those in the log from the first of them on; and applies the log up to index commit, in order, as
// far as one transaction may. It returns what came of each applied entry: fewer than commit asks for means that there
// is more to do.
//
// When it returns, the log survives a power cut. What is applied does too where something was logged with it; else it
// may be lost, and is applied again. An error is fatal: nobody knows what is on the disk.
func (s *store) write(state *hardState, entries []entry, commit uint64) (results []applied, err error) {
	mode := "FULL"
	if state == nil && len(entries) == 0 {
		if mode = "NORMAL"; len(s.unapplied) == 0 || s.unapplied[0].Index > commit {
			return nil, nil
		}
	}
	tx := func() (err error) {
		s.noted = noted{settings: *s.shown.Load(), observed: s.events.watched(),
			touched: s.touched[:0], marks: s.marks[:0], failures: s.failures[:0], counts: s.counts[:0]}
		if err = s.writeLog(state, entries); err == nil {
			results, err = s.apply(commit)
		}
		return err
	}
	if err = s.update(mode, tx); errors.Is(err, errHalfDone) {
		s.careful = true
		err = s.update(mode, tx)
		s.careful = false
	}
	if err != nil || len(results) == 0 {
		return nil, err
	}
	s.unapplied = slices.Delete(s.unapplied, 0, len(results))
	s.applied.Store(results[len(results)-1].Index)
	s.published()
	return results, nil
}

// errHalfDone rolls back where a refused command has changed something: too rare for a savepoint each.
var errHalfDone = errors.New("a command was refused halfway")

// install replaces all that is replicated by a file that another server's snapshotFile made, and then logs what write
// does, all in one transaction. Term, vote and this server's ids are not in such a file. The log begins anew after the
// snapshot's position, which the caller has found to be ahead of what was applied.
func (s *store) install(path string, at position, state *hardState, entries []entry) error {
	if err := s.script("ATTACH ? AS snapshot", path); err != nil {
		return fmt.Errorf("cannot open the snapshot: %w", err)
	}
	err := s.update("FULL", func() error {
		for _, table := range replicated {
			var columns string // but for those that are computed of others
			const query = "SELECT group_concat(name) FROM pragma_table_info(?, 'main')"
			if err := s.get(query, []any{table}, &columns); err != nil {
				return err
			}
			if err := s.script(fmt.Sprintf(`DELETE FROM main.%[1]s;
				INSERT INTO main.%[1]s (%[2]s) SELECT %[2]s FROM snapshot.%[1]s`, table, columns)); err != nil {
				return err
			}
		}
		return cmp.Or(s.beginLog(at), s.loadSettings(), s.writeLog(state, entries))
	})
	if err != nil {
		return err // fatal: whoever restarts reads everything again
	}
	s.applied.Store(at.Index)
	s.noted = noted{settings: s.settings, listed: true, allNew: true}
	s.published()
	return s.script("DETACH snapshot")
}

// beginLog empties the log, which begins anew after a position.
func (s *store) beginLog(at position) error {
	s.logFirst, s.logEnds, s.unapplied = at.Index+1, []int{0}, nil
	s.halted.Store(false)
	return cmp.Or(s.exec("DELETE FROM log"),
		s.exec("UPDATE server SET base_index = ?, base_term = ?", at.Index, at.Term))
}

// writeLog is the part of write that logs.
func (s *store) writeLog(state *hardState, entries []entry) error {
	if state != nil {
		if err := s.exec("UPDATE server SET term = ?, vote = ?", state.Term, state.Vote); err != nil {
			return err
		}
	}
	if len(entries) == 0 {
		return nil
	}
	first := entries[0].Index
	if end := s.logFirst + uint64(len(s.logEnds)-1); first < end {
		if err := s.exec("DELETE FROM log WHERE idx >= ?", int64(first)); err != nil {
			return err
		}
		s.logEnds = s.logEnds[:first-s.logFirst+1]
		s.unapplied = slices.DeleteFunc(s.unapplied, func(e entry) bool { return e.Index >= first })
	}
	size := s.logEnds[len(s.logEnds)-1]
	for _, e := range entries {
		err := s.exec("INSERT INTO log VALUES (?, ?, ?, ?)", e.Index, e.Term, int(e.Kind), nonNil(e.Data))
		if err != nil {
			return err
		}
		size += len(e.Data)
		s.logEnds = append(s.logEnds, size)
	}
	if !s.halted.Load() {
		s.unapplied = append(s.unapplied, entries...)
	}
	return nil
}

// knows reports whether this server applies an entry as others do. If not, it waits for a later version.
func (s *store) knows(e entry) bool {
	if e.Kind == entryCommand {
		return len(e.Data) > 0 && e.Data[0] > 0 && e.Data[0] <= s.format
	}
	return e.Kind == entryNoop || e.Kind == entryVoters
}

// nonNil makes an empty blob of nil, which SQLite would store as NULL.
func nonNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// entries reads the log from index from on, at most about size bytes of data but at least one entry.
func (s *store) entries(from uint64, size int64) ([]entry, error) {
	var list []entry
	const query = "SELECT idx, term, kind, data FROM log WHERE idx >= ? ORDER BY idx"
	err := s.viewEach(query, []any{int64(from)}, func(scan scanner) error {
		var e entry
		if err := scan(&e.Index, &e.Term, &e.Kind, &e.Data); err != nil {
			return err
		}
		if size -= int64(len(e.Data)); size < 0 && len(list) > 0 {
			return errEnough
		}
		list = append(list, e)
		return nil
	})
	return list, err
}

// What apply answers for one command.
type applied struct {
	Index    uint64    // of its entry, always
	First    uint64    // of the entry that had done its request before; 0: there is none, and this one did
	Err      error     // a refusal: nothing was changed
	Answer   string    // that the command asked to be kept for its request
	Refused  string    // a run by hand: why it was not started
	Jobs     []int64   // put: the ids of the jobs
	Accepted []bool    // consume and bind: whether each is done with
	Started  [][]int64 // of consume and bind: the executions that may start now
	More     bool      // delete_executions: more than one slice

	Bound    bool    // bind: what started is with another process than before
	Armed    int64   // when the first of what the command has armed falls due; 0: it has armed nothing
	Freed    []int64 // pending rows whose wait may be over
	Noticed  bool    // there are new notices
	Released bool    // a hold is over
	Untold   int     // notices that were given up because too many waited
}

// apply is the part of write that applies.
func (s *store) apply(commit uint64) (results []applied, err error) {
	size := 0
	for _, e := range s.unapplied {
		if e.Index > commit || size > applyBytesMax || !s.knows(e) {
			break
		}
		size += len(e.Data)
		r, err := s.applyEntry(e)
		if err != nil {
			return nil, fmt.Errorf("cannot apply log entry %d: %w", e.Index, err)
		}
		results = append(results, r)
	}
	if len(results) == 0 {
		if len(s.unapplied) > 0 && s.unapplied[0].Index <= commit {
			s.halted.Store(true)
			s.unapplied = nil // it is on disk, for a later version
		}
		return nil, nil
	}
	last := s.unapplied[len(results)-1]
	return results, cmp.Or(s.trimLog(last.Index),
		s.exec("UPDATE cluster SET applied_index = ?, applied_term = ?", last.Index, last.Term))
}

// published passes on, to caches and then to watchers, what the committed transaction has changed.
func (s *store) published() {
	s.showSettings()
	changed := len(s.touched) > 0 || s.allNew
	if changed {
		s.docs.drop(s.touched, s.allNew)
		s.changes.Add(1)
	}
	if s.listed {
		s.listing.Add(1)
	}
	// Who began to watch during the transaction may have read what was before it.
	s.events.publish(s.marks, s.allNew || changed && !s.observed)
	for _, e := range s.failures {
		s.failed(e)
	}
	for _, count := range s.counts {
		count(&s.stats)
	}
}

// mark notes an event of a row, which watchers get after the transaction.
func (s *store) mark(what string, row int64) {
	if s.observed {
		s.marks = append(s.marks, mark{what, row})
	}
}

// repeated reports whether the request had been done before, and nothing was done again.
func (a *applied) repeated() bool { return a.First != 0 }

// trimLog drops the oldest applied entries beyond what is kept for followers that were away, but none that a follower
// still needs: under load it could not catch up if a snapshot took longer than the log lasts.
func (s *store) trimLog(applied uint64) error {
	n, size := int(applied+1-s.logFirst), s.logEnds[len(s.logEnds)-1]-s.logEnds[0]
	drop, _ := slices.BinarySearch(s.logEnds[:n+1], s.logEnds[n]-s.kept.bytes)
	drop = max(drop, n-s.kept.entries)
	if pinned := s.pinned.Load(); pinned != 0 && drop >= s.kept.slack && size <= s.kept.pinned {
		drop = min(drop, int(pinned)-int(s.logFirst))
	}
	if drop < s.kept.slack {
		return nil
	}
	drop = min(drop, logTrimMax)
	s.logFirst += uint64(drop)
	s.logEnds = slices.Delete(s.logEnds, 0, drop)
	last := int64(s.logFirst) - 1
	return cmp.Or(
		s.exec("UPDATE server SET base_index = ?1, base_term = (SELECT term FROM log WHERE idx = ?1)", last),
		s.exec("DELETE FROM log WHERE idx <= ?", last))
}

// applyEntry applies one entry. A command that does not fit the state is a refusal, which is an answer and no error.
func (s *store) applyEntry(e entry) (applied, error) {
	switch e.Kind {
	case entryCommand:
	case entryVoters:
		return applied{Index: e.Index}, s.exec("UPDATE cluster SET voters = ?", string(e.Data))
	default:
		return applied{Index: e.Index}, nil
	}
	c, err := decodeCommand(e.Data)
	if err != nil {
		return applied{}, err
	}
	if err := s.savepoint("SAVEPOINT"); err != nil {
		return applied{}, err
	}
	a := applying{s: s, c: c, result: applied{Index: e.Index}}
	before := s.noted
	if err := contradiction(a.apply()); err != nil {
		switch {
		case !errors.As(err, new(refusal)):
			return applied{}, err
		case a.wrote && !s.careful:
			return applied{}, errHalfDone
		}
		s.noted = before
		if err := s.savepoint("ROLLBACK TO"); err != nil {
			return applied{}, err
		}
		a.result = applied{Index: e.Index, Err: err}
	}
	return a.result, s.savepoint("RELEASE")
}

// savepoint runs a statement on the savepoint of a command, if each has one.
func (s *store) savepoint(verb string) error {
	if !s.careful {
		return nil
	}
	return s.exec(verb + " command")
}

// contradiction turns an error of SQLite that says that a command does not fit the state into a refusal: it is the same
// on every server, now and after each restart, while any other error says that nothing is known about the disk.
func contradiction(err error) error {
	var e *sqlite.Error
	if errors.As(err, &e) {
		switch e.Code() & 0xff {
		case sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG:
			return refusal("the change contradicts what is stored: " + err.Error())
		}
	}
	return err
}

// Actors that are no tokens.
const (
	actorScheduler = "scheduler"
	actorAnonymous = "anonymous"
	actorBootstrap = "bootstrap" // a client with the secret in a server's data directory
)

// A command is one change of the replicated state: at most one of the fields from Found on is set. Whatever a clock,
// chance or the environment decides was decided by the leader and stands in it.
type command struct {
	Actor   string `json:"actor"`             // who caused it: "anonymous", or "scheduler"
	Now     int64  `json:"now"`               // the leader's clock
	Request string `json:"request,omitempty"` // a write is done once for its request
	Answer  string `json:"answer,omitempty"`  // what a repetition of the request is answered
	Submit  bool   `json:"submit,omitempty"`  // creates or updates jobs: refused while submissions are paused

	// If is the state of the job that the client has seen, which must be the present one; ID 0: no such job.
	If *jobVersion `json:"if,omitempty"`

	// Listeners are the operator's receivers of each event; jobs may name others.
	Listeners map[string][]string `json:"listeners,omitempty"`

	// Audit is set for a change that a caller requested; alone it records one that is not in the state.
	Audit *audited `json:"audit,omitempty"`

	Found            *foundation `json:"found,omitempty"`
	Put              []jobPut    `json:"put,omitempty"` // all or none
	Stage            *staging    `json:"stage,omitempty"`
	Restore          *restoring  `json:"restore,omitempty"`
	Delete           *jobVersion `json:"delete,omitempty"`
	DeleteExecutions *jobVersion `json:"delete_executions,omitempty"` // one slice
	SetPaused        *bool       `json:"set_paused,omitempty"`
	SetRule          *ruleSet    `json:"set_rule,omitempty"`
	PutPolicy        *policy     `json:"put_policy,omitempty"`
	DeletePolicy     string      `json:"delete_policy,omitempty"` // its name
	PutToken         *tokenPut   `json:"put_token,omitempty"`
	DeleteToken      string      `json:"delete_token,omitempty"` // its accessor
	Consume          []decision  `json:"consume,omitempty"`
	Bind             []binding   `json:"bind,omitempty"`
	Finish           []report    `json:"finish,omitempty"`
	Reset            []reset     `json:"reset,omitempty"`
	Nodes            []nodeSeen  `json:"nodes,omitempty"`
	Trim             *trimming   `json:"trim,omitempty"`
	Notice           []occasion  `json:"notice,omitempty"`
	Delivered        *deliveries `json:"delivered,omitempty"`

	// Limits is, with Consume and Bind, how many executions the nodes in them run at once: any number if not named.
	Limits map[string]int `json:"limits,omitempty"`
}

// An occasion is an event that no other command is about. Its notice is made once.
type occasion struct {
	Job       int64  `json:"job,omitempty"`       // 0: it is of the cluster
	Execution int64  `json:"execution,omitempty"` // of the job, that is overdue; 0: the job is silent
	Heard     int64  `json:"heard,omitempty"`     // since then, as found
	Notice    notice `json:"notice"`
}

// deliveries are ids of notices that receivers have taken, and of those that were given up.
type deliveries struct {
	Taken []int64 `json:"taken,omitempty"`
	Lost  []int64 `json:"lost,omitempty"`
	Void  []int64 `json:"void,omitempty"` // for who gets no mail
}

func (t *deliveries) n() int { return len(t.Taken) + len(t.Lost) + len(t.Void) }

// audited is what the audit trail shall say of a change that is not in the state.
type audited struct {
	Action  string `json:"action"`
	Address string `json:"address"`          // of the client
	Job     string `json:"job,omitempty"`    // where the change does not name it; so is the next
	Object  string `json:"object,omitempty"` // an execution, a server or a node
}

// Actions in the audit trail.
const (
	actionPut              = "job.put"
	actionToggle           = "job.toggle"
	actionDisable          = "job.disable" // of the scheduler
	actionDelete           = "job.delete"
	actionRun              = "job.run"
	actionDeleteExecutions = "executions.delete"
	actionKill             = "execution.kill"
	actionRestore          = "restore"
	actionPause            = "pause"
	actionUnpause          = "unpause"
	actionHold             = "hold"
	actionRelease          = "release"
	actionDrain            = "node.drain"
	actionUndrain          = "node.undrain"
	actionPutCalendar      = "calendar.put"
	actionDeleteCalendar   = "calendar.delete"
	actionPutPolicy        = "policy.put"
	actionDeletePolicy     = "policy.delete"
	actionCreateToken      = "token.create"
	actionDeleteToken      = "token.delete"
	actionBootstrap        = "acl.bootstrap"
	actionLeave            = "node.leave"
	actionRemovePeer       = "peer.remove"
	actionTrimAudit        = "audit.trim" // of the scheduler
)

// foundation makes a new cluster. It is written again to recover one that has lost its majority.
type foundation struct {
	ID       string `json:"id"`       // random, the same as in the servers' own tables
	Timezone string `json:"timezone"` // of jobs that name none
}

// ruleSet stores a rule, or takes it back.
type ruleSet struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
	Rule *rule  `json:"rule"`
}

// tokenPut makes a token.
type tokenPut struct {
	Token token `json:"token"`
	First bool  `json:"first,omitempty"` // refused while a management token is valid
}

// jobVersion names one state of one job: the log indexes of its creation and of its last change.
type jobVersion struct {
	ID  int64 `json:"id"`
	Rev int64 `json:"rev"`
}

// jobPut creates a job, or replaces its definition.
type jobPut struct {
	Base jobVersion `json:"base"` // what it was computed from; zero: no such job
	Job  job        `json:"job"`
	Keep bool       `json:"keep,omitempty"` // next stays as it is
	Next int64      `json:"next,omitempty"`
}

// A staging is one slice of a restore: jobs for later, and new next ticks for jobs staged before.
type staging struct {
	Restore int64       `json:"restore,omitempty"` // log index of its first slice; 0: this is it
	Jobs    []stagedJob `json:"jobs,omitempty"`
	Moved   []stagedJob `json:"moved,omitempty"` // ID and Next only
}

type stagedJob struct {
	ID   int64 `json:"id,omitempty"` // of the row; 0: to be made
	Job  job   `json:"job,omitzero"`
	Next int64 `json:"next,omitempty"`
}

// A restoring makes the jobs of a restore visible, all or none.
type restoring struct {
	Restore int64             `json:"restore"`
	Jobs    int               `json:"jobs"`            // that were staged
	Prune   map[string]string `json:"prune,omitempty"` // jobs with this metadata are deleted if not staged; or nil
}

// A decision says what becomes of a cause: of a pending row; of one due tick of a job, or of a range of missed ones,
// and when the following one is; or of the command's request, which has neither a row nor a due time.
type decision struct {
	Pending int64    `json:"pending,omitempty"`
	Job     int64    `json:"job"`
	Rev     int64    `json:"rev"`
	Due     int64    `json:"due,omitempty"` // of a tick; so are the next two
	Next    int64    `json:"next,omitempty"`
	Late    bool     `json:"late,omitempty"`
	Targets []target `json:"targets,omitempty"` // to run on; empty: it does not run
	Last    bool     `json:"last,omitempty"`    // if it still cannot start, it waits no more

	Params map[string]string `json:"params,omitempty"` // of a run by hand; so is the next
	Force  bool              `json:"force,omitempty"`  // also of a job that is disabled or held

	Outcome string `json:"outcome,omitempty"` // skipped or missed
	Reason  string `json:"reason,omitempty"`
	Until   int64  `json:"until,omitempty"` // last of a range, 0: Due
	Count   int64  `json:"count,omitempty"` // of a range, 0: 1
	Event   string `json:"event,omitempty"` // that it is for listeners, "": none
}

// A node is a member that runs jobs, as the leader knows it.
type node struct {
	Name        string
	Incarnation uint64
	Tags        map[string]string
	Overdue     bool // a heartbeat, or an answer to orders, is late
}

// target is the process of a node that shall run something.
type target struct {
	Node        string `json:"node"`
	Incarnation uint64 `json:"incarnation"`
}

// tagMaxConcurrent is the tag by which a node says how many executions it runs at once.
const tagMaxConcurrent = "max-concurrent"

// limit returns how many executions the node runs at once; 0: any number.
func (n node) limit() int {
	limit, _ := strconv.Atoi(n.Tags[tagMaxConcurrent])
	return limit
}

func (n node) target() target { return target{n.Name, n.Incarnation} }

// target is the process that the execution was given to.
func (e *executionRow) target() target { return target{e.Node, e.incarnation} }

// A report is the end of an execution: the result of its node, or the word of a leader who knows it otherwise.
type report struct {
	result
	Closed     bool `json:"closed,omitempty"`      // it is the leader's word
	OutputSize int  `json:"output_size,omitempty"` // of the Output, which follows the command's JSON as raw bytes
}

// A binding gives an execution that never started to another process.
type binding struct {
	Execution   int64  `json:"execution"`
	Incarnation uint64 `json:"incarnation"` // that it is with
	To          target `json:"to"`
}

// A reset brings back a job whose last decided tick is in the future, because a clock was wrong.
type reset struct {
	Job    int64  `json:"job"`
	Rev    int64  `json:"rev"`
	Fired  int64  `json:"fired"` // as found
	Next   int64  `json:"next"`
	Reason string `json:"reason"`
}

// A nodeSeen says that a node is up, or that it has gone.
type nodeSeen struct {
	Name string            `json:"name"`
	Tags map[string]string `json:"tags,omitempty"`
	Gone bool              `json:"gone,omitempty"`

	Failed bool `json:"failed,omitempty"` // it has not stopped by itself
}

// trimming drops what need not be kept, at most about sliceRows rows of a kind.
type trimming struct {
	Executions []cut   `json:"executions,omitempty"` // finished ones
	Ticks      []cut   `json:"ticks,omitempty"`
	Jobs       []int64 `json:"jobs,omitempty"`     // deleted ones
	Requests   uint64  `json:"requests,omitempty"` // up to this log index
	Day        int64   `json:"day,omitempty"`      // daily counts before this day; 0: none
	Restore    int64   `json:"restore,omitempty"`  // staged jobs of this restore; 0: none
	Audit      int64   `json:"audit,omitempty"`    // rows of the audit trail up to this id

	auditUpto int64 // time of the newest of them that goes for the size of the trail; 0: none does
}

func (t *trimming) empty() bool {
	return len(t.Executions)+len(t.Ticks)+len(t.Jobs) == 0 &&
		t.Requests == 0 && t.Day == 0 && t.Restore == 0 && t.Audit == 0
}

// cut is the end of what is dropped of a job: rows with ids up to Upto.
type cut struct {
	Job   int64 `json:"job"`
	Upto  int64 `json:"upto"`
	Spare int64 `json:"spare,omitempty"` // of executions: id from which on those without success stay; 0: none stays
}

// Values of a job's concurrency, or empty: allow. With queue and replace the newest run that cannot start waits.
const (
	concurrencyAllow   = "allow"
	concurrencyForbid  = "forbid"
	concurrencyQueue   = "queue"
	concurrencyReplace = "replace"
)

// Why an execution exists, or should have.
const (
	causeTick  = "tick"
	causeChild = "child"

	causeChildren = "children" // of a pending row: the children of its job must follow
	causeSlot     = "slot"     // of a pending row: its group must still start on a node

	causeRetry = "retry"
	causeHand  = "hand"
	causeClock = "clock" // in ticks: a job that a wrong clock had carried into the future
)

// encode returns an entry's data: the format number, the length of the JSON, the JSON, outputs of reports.
func (c *command) encode() ([]byte, error) {
	bare := *c
	bare.Finish = slices.Clone(c.Finish)
	for i := range bare.Finish {
		r := &bare.Finish[i]
		r.OutputSize, r.Output = len(r.Output), nil
	}
	doc, err := json.Marshal(&bare)
	if err != nil {
		return nil, err
	}
	data := binary.AppendUvarint([]byte{commandFormat}, uint64(len(doc)))
	data = append(data, doc...)
	for _, r := range c.Finish {
		data = append(data, r.Output...)
	}
	return data, nil
}

// decodeCommand is the inverse of encode. The outputs alias data.
func decodeCommand(data []byte) (*command, error) {
	rest := data[min(1, len(data)):]
	size, n := binary.Uvarint(rest)
	if n <= 0 || size > uint64(len(rest)-n) {
		return nil, errCutShort
	}
	doc, rest := rest[n:n+int(size)], rest[n+int(size):]
	var c command
	if err := json.Unmarshal(doc, &c); err != nil {
		return nil, err
	}
	for i := range c.Finish {
		r := &c.Finish[i]
		size := r.OutputSize
		if size < 0 || size > len(rest) {
			return nil, errCutShort
		}
		r.Output, r.OutputSize, rest = rest[:size:size], 0, rest[size:]
	}
	return &c, nil
}

var errCutShort = errors.New("the entry is cut short")

// keyBits are the bits of a key that number the rows of one command: a million.
const keyBits = 20

// firstStaged is key(?1, 0) in SQL, ?1 being a restore: where its rows begin.
var firstStaged = fmt.Sprintf("(?1 << %d)", keyBits)

// key returns the n-th key that the command at a log index may use. Keys grow with the log, differ between commands,
// and are exact in a JSON number up to index 2^33.
func key(index uint64, n int) int64 {
	return int64(index)<<keyBits | int64(n)
}

// applying is one command on its way into the state.
type applying struct {
	s      *store
	c      *command
	keys   int   // used so far
	made   int   // pending rows of children
	wrote  bool  // it has changed rows
	err    error // the first; nothing is read or written after it
	result applied

	running map[string]int // node → its unfinished executions, once that was asked for
	freed   map[string]int // what pending rows may wait for → how many may have it now
}

// fail refuses the command, or ends the process, unless it has failed before.
func (a *applying) fail(err error) {
	if a.err == nil {
		a.err = err
	}
}

// exec changes rows, and returns how many.
func (a *applying) exec(query string, args ...any) (rows int64) {
	if a.err == nil {
		rows, a.err = a.s.execRows(query, args...)
		a.wrote = a.wrote || rows > 0
	}
	return rows
}

// get reads one row, and reports whether there is one.
func (a *applying) get(query string, args []any, dest ...any) bool {
	if a.err != nil {
		return false
	}
	err := a.s.get(query, args, dest...)
	if errors.Is(err, sql.ErrNoRows) {
		return false
	}
	a.fail(err)
	return err == nil
}

// applyRows returns the rows of a query, as rowsOf does.
func applyRows[T any](a *applying, query string, args ...any) (list []T) {
	if a.err == nil {
		list, a.err = rowsOf[T](a.s.each, query, args...)
	}
	return list
}

// key returns a key that no other row ever has. A command that uses more than there are is refused.
func (a *applying) key() int64 {
	a.keys++
	return key(a.result.Index, a.keys-1)
}

// apply makes the change. Of a request that takes several commands only the last is recorded, so that a repetition goes
// on where it was broken off.
func (a *applying) apply() error {
	if a.repeated() || a.err != nil {
		return a.err
	}
	if a.c.Submit && a.s.settings.paused {
		return errPaused
	}
	if a.c.If != nil {
		var rev int64
		if a.get("SELECT rev FROM jobs WHERE id = ? AND deleted = 0", []any{a.c.If.ID}, &rev); rev != a.c.If.Rev {
			a.fail(errRev)
		}
	}
	a.change()
	if a.keys > 1<<keyBits {
		a.fail(errKeys)
	}
	if a.c.Request != "" && !a.result.More {
		a.exec("INSERT INTO requests VALUES (?, ?, ?, ?)",
			int64(a.result.Index), a.c.Request, a.c.Answer, a.result.Refused)
	}
	return a.err
}

const requestQuery = "SELECT idx, answer, refused FROM requests WHERE id = ?"

// repeated reports whether the command's request was accepted before.
func (a *applying) repeated() bool {
	r := applied{Index: a.result.Index}
	if a.c.Request == "" || !a.get(requestQuery, []any{a.c.Request}, &r.First, &r.Answer, &r.Refused) {
		return false
	}
	a.result = r
	return true
}

func (a *applying) change() {
	c := a.c
	a.s.listed = a.s.listed || c.Put != nil || c.Restore != nil || c.Delete != nil || c.DeleteExecutions != nil
	changed := part(c.Found != nil, a.found, c.Found) ||
		part(c.Put != nil, a.putAll, c.Put) ||
		part(c.Stage != nil, a.stage, c.Stage) ||
		part(c.Restore != nil, a.restore, c.Restore) ||
		part(c.Delete != nil, a.delete, c.Delete) ||
		part(c.DeleteExecutions != nil, a.deleteExecutions, c.DeleteExecutions) ||
		part(c.SetPaused != nil, a.setPaused, c.SetPaused) ||
		part(c.SetRule != nil, a.setRule, c.SetRule) ||
		part(c.PutPolicy != nil, a.putPolicy, c.PutPolicy) ||
		part(c.DeletePolicy != "", a.deletePolicy, c.DeletePolicy) ||
		part(c.PutToken != nil, a.putToken, c.PutToken) ||
		part(c.DeleteToken != "", a.deleteToken, c.DeleteToken) ||
		part(c.Consume != nil, a.consume, c.Consume) ||
		part(c.Bind != nil, a.bind, c.Bind) ||
		part(c.Finish != nil, a.finish, c.Finish) ||
		part(c.Reset != nil, a.reset, c.Reset) ||
		part(c.Nodes != nil, a.seeNodes, c.Nodes) ||
		part(c.Trim != nil, a.trim, c.Trim) ||
		part(c.Notice != nil, a.occasions, c.Notice) ||
		part(c.Delivered != nil, a.delivered, c.Delivered)
	if !changed {
		a.audit("", "", nil, nil)
	}
	if a.result.Noticed {
		a.boundNotices()
	}
}

// part applies a part of a command that is set, and reports whether it is.
func part[T any](set bool, apply func(T), what T) bool {
	if set {
		apply(what)
	}
	return set
}

func (a *applying) putAll(list []jobPut) {
	for _, p := range list {
		a.put(p)
	}
}

// audit adds a row to the audit trail if a caller requested the change. before and after are documents or nil.
func (a *applying) audit(job, object string, before, after any) {
	w := a.c.Audit
	if w == nil || a.err != nil {
		return
	}
	was, is, err := difference(before, after)
	a.fail(err)
	job, object = cmp.Or(job, w.Job), cmp.Or(object, w.Object)
	size := auditRowBytes + len(job) + len(object) + len(was) + len(is)
	a.exec(`INSERT INTO audit VALUES (?, ?, ? + coalesce((SELECT total FROM audit ORDER BY id DESC LIMIT 1), 0),
		?, coalesce((SELECT name FROM tokens WHERE accessor = ?4), ''), ?, ?, ?, ?, ?, ?)`,
		a.key(), a.c.Now, size, a.c.Actor, w.Address, w.Action, job, object, was, is)
}

// was returns the definition of a job, a *job, if the audit trail shall have it; nil for id 0.
func (a *applying) was(id int64) any {
	if a.c.Audit == nil || id == 0 {
		return nil
	}
	var j job
	a.get("SELECT doc FROM jobs WHERE id = ?", []any{id}, jsonColumn{&j})
	return &j
}

// difference returns the fields in which two documents differ, as JSON objects: what looks secret in a job is hidden,
// and of what is too long only its length is left. Where there is no document it returns null.
func difference(before, after any) (was, is string, err error) {
	// The most frequent change takes a third of the time like this.
	if j, ok := after.(*job); ok && before == nil && j.Notify == nil {
		new := *j
		new.ExecutorConfig, new.Params = hideConfig(j.ExecutorConfig), hideParams(j.Params)
		if doc, err := plainJSON(&new); err != nil || len(doc) <= auditFieldMax {
			return "null", string(doc), err
		}
	}
	b, err1 := fieldsOf(before)
	a, err2 := fieldsOf(after)
	if err = cmp.Or(err1, err2); err != nil {
		return "", "", err
	}
	for k, v := range a {
		if bytes.Equal(v, b[k]) {
			delete(a, k)
			delete(b, k)
		}
	}
	was, err1 = auditJSON(b)
	is, err2 = auditJSON(a)
	return was, is, cmp.Or(err1, err2)
}

func fieldsOf(v any) (fields map[string]json.RawMessage, err error) {
	if v == nil {
		return nil, nil
	}
	doc, err := plainJSON(v)
	if err == nil {
		err = json.Unmarshal(doc, &fields)
	}
	return fields, err
}

func auditJSON(fields map[string]json.RawMessage) (string, error) {
	for k, v := range fields {
		if hide := hiddenIn[k]; hide != nil {
			var err error
			if v, err = hide(v); err != nil {
				return "", err
			}
		}
		if fields[k] = v; len(v) > auditFieldMax {
			fields[k] = fmt.Appendf(nil, `"<%d bytes>"`, len(v))
		}
	}
	doc, err := plainJSON(fields)
	return string(doc), err
}

// put refuses a base that has changed, and a parent that does not exist or would close a cycle. It refuses a new
// next while the old one is due and undecided, as that tick would have no outcome; and one that is not after the last
// decided tick, as the job would be stuck.
func (a *applying) put(p jobPut) {
	var base jobVersion
	var next, fired int64
	var armed bool
	var oldParent string
	a.get(`SELECT id, rev, next, fired, armed, parent_job FROM jobs JOIN job_state ON job = id
		WHERE name = ? AND deleted = 0`, []any{p.Job.Name}, &base.ID, &base.Rev, &next, &fired, &armed, &oldParent)
	if base != p.Base {
		a.fail(errConflict)
	}
	if p.Job.ParentJob != "" && p.Job.ParentJob != oldParent {
		a.checkParent(p.Job.Name, p.Job.ParentJob)
	}
	for _, name := range p.Job.SkipOn {
		if _, ok := a.s.settings.rules[ruleCalendar][name]; !ok {
			a.fail(errNoCalendar)
		}
	}
	moved := base.ID != 0 && !p.Keep
	switch {
	case moved && armed && next != never && next <= a.c.Now:
		a.fail(errUndecided)
	case moved && p.Job.armed() && p.Next != never && p.Next <= fired:
		a.fail(errConflict)
	}
	was := a.was(base.ID)
	a.touchParents(oldParent, p.Job.ParentJob)
	a.store(p)
	a.audit(p.Job.Name, "", was, &p.Job)
}

// touch notes that jobs change as the API shows them, in themselves or in the names of parent and children.
func (a *applying) touch(ids ...int64) {
	for _, id := range ids {
		a.touchRun(id)
		a.s.mark(eventJob, id)
	}
}

// touchParents is touch by names, of which "" is none.
func (a *applying) touchParents(names ...string) {
	if strings.Join(names, "") != "" {
		a.touch(applyRows[int64](a, `SELECT id FROM jobs
			WHERE name IN (SELECT value FROM json_each(?)) AND deleted = 0 ORDER BY id`, jsonText(names))...)
	}
}

// touchRun is touch for what the start or end of a run changes, for which watchers get another event.
func (a *applying) touchRun(id int64) { a.s.touched = append(a.s.touched, id) }

// checkParent refuses a parent that does not exist or is below the job, and too many children or ancestors.
func (a *applying) checkParent(job, parent string) {
	above, below, children := 0, 0, 0
	for up := parent; up != "" && a.err == nil; above++ {
		at := up
		switch {
		case !a.get("SELECT parent_job FROM jobs WHERE name = ? AND deleted = 0", []any{at}, &up):
			a.fail(errParent)
		case at == job:
			a.fail(errParentCycle)
		case above == ancestorsMax:
			a.fail(errAncestors)
		}
	}
	a.get(`WITH RECURSIVE below(name, n) AS (SELECT ?1, 0
			UNION ALL SELECT c.name, n + 1 FROM below j JOIN jobs c ON `+childOfJob+`)
		SELECT max(n), (SELECT count(*) FROM jobs WHERE parent_job = ?2 AND parent_job <> '' AND deleted = 0)
		FROM below`, []any{job, parent}, &below, &children)
	switch {
	case above+below > ancestorsMax:
		a.fail(errAncestors)
	case children >= childrenMax:
		a.fail(errChildren)
	}
}

// arm has the leader look at something when it falls due.
func (a *applying) arm(at int64) {
	if at != never && (a.result.Armed == 0 || at < a.result.Armed) {
		a.result.Armed = at
	}
}

// wait makes a pending row, or puts it back, and returns its id. The leader looks at it when it is due; if it waits for
// something, when that is free, and every waitPause.
func (a *applying) wait(p pendingRow) (id int64) {
	if p.ID == 0 {
		p.ID = a.key()
	}
	switch p.WaitsFor {
	case "":
		a.arm(p.Due)
	case ownGroup(p.JobID): // the leader may have to end what runs
		a.result.Freed = append(a.result.Freed, p.ID)
		a.arm(a.c.Now)
	default:
		a.arm(a.c.Now + int64(waitPause))
	}
	a.exec("INSERT INTO pending VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", p.ID, p.Cause, p.JobID, p.Group,
		p.slot, p.Attempt, p.Node, p.Due, p.Asked, p.Late, jsonText(p.Params), p.Forced, p.WaitsFor)
	return p.ID
}

// waitPause is the time between looks at what waits, as a node may have come, or a job changed.
const waitPause = 10 * time.Second

// wake has the leader look at what waits for something that may be free now, in the order in which it was due.
func (a *applying) wake() {
	const query = "SELECT p.id FROM " + waitingSQL + " ORDER BY asked, p.id LIMIT ?"
	for _, thing := range sortedKeys(a.freed) {
		for _, id := range applyRows[int64](a, query, thing, a.freed[thing]) {
			a.result.Freed = append(a.result.Freed, id)
			a.arm(a.c.Now)
		}
	}
}

// waitingSQL are the pending rows p that wait for a thing, with their jobs j. Those of held jobs do not count: they
// start when their hold is over, and keep nobody else from starting.
const waitingSQL = `pending p JOIN jobs j ON j.id = p.job WHERE waits_for = ? AND waits_for <> ''
	AND (forced OR NOT EXISTS (SELECT * FROM rules h WHERE kind = 'hold' AND NOT EXISTS (
		SELECT key, value FROM json_each(h.doc, '$.metadata') EXCEPT SELECT key, value FROM json_each(j.metadata))))`

// What a pending row may wait for.
func ownGroup(job int64) string  { return fmt.Sprint("job ", job) }
func mutexOf(name string) string { return "mutex " + name }
func roomOn(node string) string  { return "node " + node }

// store writes the rows of a job. It has been checked.
func (a *applying) store(p jobPut) {
	j, id := &p.Job, p.Base.ID
	if id == 0 {
		id = a.key()
	}
	a.result.Jobs = append(a.result.Jobs, id)
	a.touch(id)
	a.exec(`INSERT INTO jobs (id, rev, deleted, doc) VALUES (?, ?, 0, ?)
		ON CONFLICT (id) DO UPDATE SET rev = excluded.rev, doc = excluded.doc`, id, int64(a.result.Index), j.document())
	switch {
	case p.Base.ID == 0:
		a.exec("INSERT INTO job_state "+newStateSQL, id, p.Next, j.armed(), a.computed(p.Next), a.c.Now,
			j.SuccessCount, j.ErrorCount, int64(j.LastSuccess), int64(j.LastError))
	case p.Keep:
		return
	default:
		a.exec("UPDATE job_state SET next = ?, fires = ?, fired = max(fired, ?), failures = 0, heard = ? WHERE job = ?",
			p.Next, j.armed(), a.computed(p.Next), a.c.Now, id)
	}
	if j.armed() {
		a.arm(p.Next)
	}
}

// newStateSQL is the first state of a job: its id, next, fires, fired, heard, and what it has counted elsewhere.
const newStateSQL = `(job, next, fires, fired, heard, success_count, error_count, last_success, last_error)
	VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`

// computed is the time of the clock by which next was computed. It stands in for the last decided tick: from it a later
// leader sees that the clock was ahead.
func (a *applying) computed(next int64) int64 {
	if next == never {
		return a.c.Now
	}
	return min(a.c.Now, next-1)
}

// stage keeps a slice of a restore.
func (a *applying) stage(st *staging) {
	restore := st.Restore
	if restore == 0 {
		restore = int64(a.result.Index)
	}
	for _, p := range st.Jobs {
		j := &p.Job
		a.exec(`INSERT INTO staged (id, restore, next, success_count, error_count, last_success, last_error, doc)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?)`, a.key(), restore, p.Next,
			j.SuccessCount, j.ErrorCount, int64(j.LastSuccess), int64(j.LastError), j.document())
	}
	for _, p := range st.Moved {
		a.exec("UPDATE staged SET next = ? WHERE id = ? AND restore = ?", p.Next, p.ID, restore)
	}
}

// sameTicksSQL is true of a staged job st that falls due when the job j of its name does: the twin of sameTicks.
const sameTicksSQL = `(st.schedule = j.schedule AND st.timezone = j.timezone
	AND st.disabled = j.disabled AND st.parent_job = j.parent_job
	AND st.doc ->> 'starts_at' IS j.doc ->> 'starts_at' AND st.doc ->> 'expires_at' IS j.doc ->> 'expires_at')`

// stagedComputed is applying.computed of a staged job st, ?3 being the command's clock.
const stagedComputed = "iif(st.next > ?3 OR st.next = -9223372036854775808, ?3, st.next - 1)"

// badInput is an error of the client that sent a definition.
type badInput struct{ error }

func (b badInput) Unwrap() error { return b.error }

// A ban is a reason to refuse a restore, and the query for the first name of a job that it applies to. ?1 is the
// restore, ?2 the command's clock, ?3 childrenMax and ?4 ancestorsMax.
type ban struct {
	err   error
	query string
}

// bans are of the staged jobs. The last two end once the leader decides what is due, or computes next anew.
var bans = []ban{
	// Its rows stay until a trim; a second restore of them makes no job twice.
	{errBrokenOff, `SELECT st.name FROM staged st JOIN jobs j ON j.id = st.id WHERE restore = ?1`},
	{badInput{refusal("the name stands more than once in the file")},
		`SELECT name FROM staged WHERE restore = ?1 GROUP BY name HAVING count(*) > 1`},
	{badInput{errParent}, `SELECT name FROM staged st WHERE restore = ?1 AND parent_job <> ''
		AND NOT EXISTS (SELECT * FROM staged p WHERE p.restore = ?1 AND p.name = st.parent_job)
		AND NOT EXISTS (SELECT * FROM jobs p WHERE p.name = st.parent_job AND p.deleted = 0)`},
	{badInput{errNoCalendar}, `SELECT st.name FROM staged st, json_each(st.doc, '$.skip_on') c WHERE restore = ?1
		AND c.value NOT IN (SELECT name FROM rules WHERE kind = 'calendar')`},
	{errUndecided, `SELECT st.name FROM ` + replacedSQL + ` AND j.armed
		AND s.next BETWEEN -9223372036854775807 AND ?2 AND NOT ` + sameTicksSQL},
	{errConflict, `SELECT st.name FROM ` + replacedSQL + ` AND st.armed
		AND st.next BETWEEN -9223372036854775807 AND s.fired AND NOT ` + sameTicksSQL},
}

// familyBans are of all jobs, and refuse what checkParent refuses of one. Jobs that are their own ancestors are not
// reached from the jobs without a parent.
var familyBans = []ban{
	{badInput{errChildren}, `SELECT parent_job FROM jobs WHERE parent_job <> '' AND deleted = 0
		GROUP BY parent_job HAVING count(*) > ?3`},
	{errHasChildren, `SELECT parent_job FROM jobs c WHERE parent_job <> '' AND deleted = 0
		AND NOT EXISTS (SELECT * FROM jobs p WHERE p.name = c.parent_job AND p.deleted = 0)`},
	{badInput{errAncestors}, reachedSQL + `SELECT name FROM reached WHERE n > ?4`},
	{badInput{errParentCycle}, reachedSQL + `SELECT name FROM jobs WHERE parent_job <> '' AND deleted = 0
		AND name NOT IN (SELECT name FROM reached)`},
}

// replacedSQL are the staged jobs st of a restore that replace a job j, with its state s.
const replacedSQL = `staged st JOIN jobs j ON j.name = st.name AND j.deleted = 0
	JOIN job_state s ON s.job = j.id WHERE st.restore = ?1`

// reachedSQL are the jobs below those without a parent, and how many are above each.
const reachedSQL = `WITH RECURSIVE reached(name, n) AS (SELECT name, 0 FROM jobs WHERE parent_job = '' AND deleted = 0
	UNION ALL SELECT c.name, n + 1 FROM reached j JOIN jobs c ON ` + childOfJob + ` WHERE n <= ?4) `

func (a *applying) refuse(restore int64, bans []ban) {
	for _, b := range bans {
		var name string
		if a.get(b.query+" ORDER BY 1 LIMIT 1", []any{restore, a.c.Now, childrenMax, ancestorsMax}, &name) {
			a.fail(fmt.Errorf("%s: %w", name, b.err))
		}
	}
}

// restore moves the staged jobs into jobs. It does so by a few statements over whole tables, because all of it is one
// transaction: measured, 10 µs a job. Jobs that exist keep their id, counters and status, and their next tick unless
// what decides it has changed.
func (a *applying) restore(r *restoring) {
	var n int
	if a.get("SELECT count(*) FROM staged WHERE restore = ?", []any{r.Restore}, &n); n != r.Jobs {
		a.fail(errBrokenOff)
	}
	a.refuse(r.Restore, bans)
	a.s.allNew = true
	a.exec(`UPDATE job_state SET next = st.next, fires = st.armed, fired = max(fired, `+stagedComputed+`), failures = 0
		FROM staged st JOIN jobs j ON j.name = st.name AND j.deleted = 0
		WHERE st.restore = ?1 AND job_state.job = j.id AND NOT `+sameTicksSQL, r.Restore, nil, a.c.Now)
	a.exec(`INSERT INTO jobs (id, rev, deleted, doc) SELECT id, ?2, 0, doc FROM staged
		WHERE id >= `+firstStaged+` AND +restore = ?1 ORDER BY id
		ON CONFLICT (name) WHERE deleted = 0 DO UPDATE SET rev = excluded.rev, doc = excluded.doc`,
		r.Restore, int64(a.result.Index))
	created := a.exec(`INSERT INTO job_state (job, next, fires, fired, heard)
		SELECT st.id, st.next, st.armed, `+stagedComputed+`, ?3
		FROM staged st JOIN jobs j ON j.id = st.id WHERE st.restore = ?1 ORDER BY st.id`, r.Restore, nil, a.c.Now)
	a.exec(`UPDATE job_state AS s SET success_count = max(s.success_count, st.success_count),
			error_count = max(s.error_count, st.error_count),
			last_success = max(s.last_success, st.last_success), last_error = max(s.last_error, st.last_error)
		FROM staged st JOIN jobs j ON j.name = st.name AND j.deleted = 0 WHERE st.restore = ?1 AND s.job = j.id
			AND st.success_count + st.error_count + st.last_success + st.last_error > 0`, r.Restore)
	changes := map[string]int64{"created": created, "replaced": int64(n) - created}
	if r.Prune != nil {
		changes["deleted"] = a.prune(r)
	}
	a.refuse(r.Restore, familyBans)
	a.arm(a.c.Now)
	a.audit("", "", nil, changes)
}

// prune deletes the jobs with a metadata that a restore does not have, and returns how many.
func (a *applying) prune(r *restoring) int64 {
	query, args := jobFilter{Metadata: r.Prune}.query()
	ids := applyRows[int64](a, "SELECT id FROM ("+query+") WHERE id NOT IN (SELECT j.id FROM staged st "+
		"JOIN jobs j ON j.name = st.name AND j.deleted = 0 WHERE restore = ?)", append(args, r.Restore)...)
	for _, id := range ids {
		a.softDelete(id)
	}
	return int64(len(ids))
}

// document is the job as it is stored, without its record.
func (j job) document() string {
	j.dropRecord()
	return jsonText(j)
}

func (a *applying) delete(v *jobVersion) {
	var rev int64
	var parent bool
	found := a.get("SELECT rev, EXISTS (SELECT * FROM jobs c WHERE "+childOfJob+") FROM jobs j "+
		"WHERE id = ? AND deleted = 0", []any{v.ID}, &rev, &parent)
	switch {
	case !found:
		a.fail(errNoJob)
	case rev != v.Rev:
		a.fail(errConflict)
	case parent:
		a.fail(errHasChildren)
	}
	was := a.was(v.ID)
	a.softDelete(v.ID)
	if j, ok := was.(*job); ok {
		a.audit(j.Name, "", was, nil)
	}
}

// softDelete deletes a job: its name is free at once and nothing follows. Its runs end under the old id; its rows go
// with later trims.
func (a *applying) softDelete(id int64) {
	var parent string
	a.get("SELECT parent_job FROM jobs WHERE id = ?", []any{id}, &parent)
	a.touch(id)
	a.touchParents(parent)
	a.s.listed = true // an ephemeral job goes without an API call
	a.exec("UPDATE jobs SET deleted = ?1, rev = ?1 WHERE id = ?2", int64(a.result.Index), id)
	a.exec("DELETE FROM pending WHERE job = ?", id)
	a.exec("DELETE FROM job_state WHERE job = ?", id)
}

// deleteExecutions drops one slice of a job's finished executions and zeroes its counters; its status stays, as Dkron
// has it. Groups that are not over are spared.
func (a *applying) deleteExecutions(v *jobVersion) {
	var name string
	if !a.get("SELECT name FROM jobs WHERE id = ? AND deleted = 0", []any{v.ID}, &name) {
		a.fail(errNoJob)
	}
	a.result.More = a.dropExecutions(cut{Job: v.ID, Upto: math.MaxInt64}) == sliceRows
	a.touch(v.ID)
	a.exec(`UPDATE job_state SET success_count = 0, error_count = 0, last_success = 0, last_error = 0
		WHERE job = ?`, v.ID)
	if !a.result.More {
		a.audit(name, "", nil, nil)
	}
}

// found also closes what was running in a former life of the cluster, as a backup or a recovered server recorded it.
func (a *applying) found(f *foundation) {
	a.exec("UPDATE cluster SET id = ?, timezone = iif(timezone = '', ?, timezone)", f.ID, f.Timezone)
	a.fail(a.s.loadSettings())
	const why = "lost: the cluster was recovered or started from a backup; the run may or may not have ended\n"
	var lost []report
	for _, e := range applyRows[executionRow](a, "SELECT * FROM executions WHERE finished = 0 AND id < ? ORDER BY id",
		(int64(a.result.Index)-lifeGap/2)<<keyBits) {
		lost = append(lost, report{Closed: true, result: result{Execution: e.ID, Incarnation: e.incarnation,
			Finished: a.c.Now, Outcome: outcomeLost, Reason: len(why), Output: []byte(why)}})
	}
	a.finish(lost)
}

// lifeGap is how far the log's index jumps where a cluster begins a new life, from a backup or by recovery: farther
// than the former one can have come, so that no id of an execution comes twice. There is room for 30 lives.
const lifeGap = 1 << 28

func (a *applying) setPaused(paused *bool) {
	a.s.settings.paused = *paused
	a.s.mark(eventPaused, 0)
	a.exec("UPDATE cluster SET paused = ?", *paused)
	a.audit("", "", nil, nil)
}

// setRule stores a rule, or takes it back. A calendar that a job names stays.
func (a *applying) setRule(r *ruleSet) {
	old := a.s.settings.rules[r.Kind]
	var was, is any
	var job int
	if rule, ok := old[r.Name]; ok {
		was = rule
	}
	switch {
	case r.Rule != nil:
		is = r.Rule
		if was == nil && r.Kind != ruleDrain && len(old) >= rulesMax {
			a.fail(errRules)
		}
		a.exec("INSERT OR REPLACE INTO rules VALUES (?, ?, ?)", r.Kind, r.Name, jsonText(r.Rule))
	case was == nil:
		a.fail(errNoRule)
	case r.Kind == ruleCalendar && a.get(`SELECT 1 FROM jobs, json_each(doc, '$.skip_on')
		WHERE deleted = 0 AND value = ? LIMIT 1`, []any{r.Name}, &job):
		a.fail(errCalendarUsed)
	}
	if r.Rule == nil {
		a.exec("DELETE FROM rules WHERE kind = ? AND name = ?", r.Kind, r.Name)
		a.result.Released = r.Kind == ruleHold
	}
	a.fail(a.s.loadSettings())
	a.s.mark(eventPaused, 0)
	a.audit("", r.Name, was, is)
}

func (a *applying) putPolicy(p *policy) {
	was := a.policy(p.Name)
	a.exec("INSERT OR REPLACE INTO policies VALUES (?, ?)", p.Name, p.Rules)
	a.audit("", p.Name, was, *p)
}

func (a *applying) deletePolicy(name string) {
	was := a.policy(name)
	if was == nil {
		a.fail(errNoPolicy)
	}
	a.exec("DELETE FROM policies WHERE name = ?", name)
	a.audit("", name, was, nil)
}

// policy returns the policy of that name, nil if there is none.
func (a *applying) policy(name string) any {
	p := policy{Name: name}
	if !a.get("SELECT rules FROM policies WHERE name = ?", []any{name}, &p.Rules) {
		return nil
	}
	return p
}

// ranSQL is the outcome of a tick whose first execution is e: missed if none of its group has started.
const ranSQL = `CASE WHEN e.outcome = 'missed' AND NOT EXISTS (SELECT * FROM executions m
		WHERE m.grp = e.id AND m.grp <> m.id AND m.outcome <> 'missed') THEN 'missed'
	WHEN e.late THEN 'late' ELSE 'ran' END`

func (a *applying) putToken(p *tokenPut) {
	var managed bool
	if p.First && a.get(managedQuery, []any{a.c.Now}, &managed) && managed {
		a.fail(errManaged)
	}
	t := p.Token
	a.exec("INSERT OR REPLACE INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?)",
		t.Accessor, t.Name, t.Type, jsonText(t.Policies), t.Hash, t.Created, t.Expires)
	a.audit("", t.Accessor, nil, t.view())
}

func (a *applying) deleteToken(accessor string) {
	t, err := rowOf[token](a.s.each, errNoToken, "SELECT * FROM tokens WHERE accessor = ?", accessor)
	a.fail(err)
	a.audit("", accessor, t.view(), nil) // before it goes: it may be the token of the caller
	a.exec("DELETE FROM tokens WHERE accessor = ?", accessor)
}

// openGroups selects the groups of a job that are not over: these are spared by whatever drops executions.
func openGroups(job string) string {
	return fmt.Sprintf(`(SELECT grp FROM executions WHERE job = %[1]s AND finished = 0
		UNION ALL SELECT grp FROM pending WHERE job = %[1]s)`, job)
}

// dropExecutions deletes the oldest finished executions of a job up to a cut, at most sliceRows, sparing groups that
// are not over, and adds the ticks among them to the daily counts. It returns how many.
func (a *applying) dropExecutions(c cut) int64 {
	list := jsonText(applyRows[int64](a, "SELECT id FROM executions WHERE job = ?1 AND id <= ?2 AND +finished <> 0 "+
		"AND grp NOT IN "+openGroups("?1")+" AND (?4 = 0 OR id < ?4 OR outcome = 'success') ORDER BY id LIMIT ?3",
		c.Job, c.Upto, sliceRows, c.Spare))
	const doomed = " IN (SELECT value FROM json_each(?1))"
	a.exec(`INSERT INTO tick_days SELECT job, due / 86400000000000,
			sum(ran = 'ran'), sum(ran = 'late'), 0, sum(ran = 'missed')
		FROM (SELECT job, due, `+ranSQL+` AS ran FROM executions e
			WHERE id`+doomed+` AND id = grp AND cause = 'tick') GROUP BY 2 `+addTicksSQL, list)
	a.exec("DELETE FROM outputs WHERE execution"+doomed, list)
	n := a.exec("DELETE FROM executions WHERE id"+doomed, list)
	a.exec(`UPDATE job_state SET kept = kept - ?1, spared = iif(?4 = 0, 0,
		(SELECT count(*) FROM executions INDEXED BY executions_job_bad
			WHERE job = ?2 AND id BETWEEN ?4 AND ?3 AND outcome NOT IN ('', 'success')))
		WHERE job = ?2`, n, c.Job, c.Upto, c.Spare)
	return n
}

// addTicksSQL adds a row of tick_days to the one that is there.
const addTicksSQL = `ON CONFLICT DO UPDATE SET ran = ran + excluded.ran, late = late + excluded.late,
	skipped = skipped + excluded.skipped, missed = missed + excluded.missed`

// consuming is what a decision needs to know of a job.
type consuming struct {
	id int64
	audience
	rev, next, fired, open int64
	armed, disabled        bool
	concurrency, mutex     string
	failing                bool // to be disabled, once its ticks are decided
	unplaced               bool
	metadata               map[string]string // nil while nothing is held
	day, ticks, overlaps   int64
	was                    int64 // open before the command

	changed bool
	missed  notice // of all ticks that an outage took; without an event: there is none
}

// alone reports whether only one group of the job may be open.
func (t *consuming) alone() bool {
	return t.mutex != "" || t.concurrency != "" && t.concurrency != concurrencyAllow
}

// newest reports whether only the newest of what cannot start yet waits.
func (t *consuming) newest() bool {
	return t.concurrency == concurrencyQueue || t.concurrency == concurrencyReplace
}

// consuming reads the jobs of decisions, without those that are deleted.
func (a *applying) consuming(list []decision) map[int64]*consuming {
	ids, jobs := make([]int64, len(list)), map[int64]*consuming{}
	for i, d := range list {
		ids[i] = d.Job
	}
	metadata := "'null'"
	if len(a.s.settings.rules[ruleHold]) > 0 {
		metadata = "j.metadata"
	}
	query := `SELECT j.id, ` + audienceColumns + `, rev, next, fired, open, armed, disabled, concurrency, mutex,
			disable_after BETWEEN 1 AND failures, unplaced, ` + metadata + `, day, day_ticks, day_overlaps, open
		FROM json_each(?) v JOIN jobs j ON j.id = v.value JOIN job_state s ON s.job = j.id WHERE deleted = 0`
	for _, t := range applyRows[consuming](a, query, jsonText(ids)) {
		jobs[t.id] = &t
	}
	return jobs
}

// consume turns each cause into a group of executions or a reason, once, or has it wait until it can start. A cause
// that is not as the leader knew it changes nothing and starts nothing.
func (a *applying) consume(list []decision) {
	jobs := a.consuming(list)
	a.result.Accepted, a.result.Started = make([]bool, len(list)), make([][]int64, len(list))
	for i, d := range list {
		t := jobs[d.Job]
		if t != nil && len(d.Targets) > 0 && a.barred(d, t) {
			continue
		}
		p, own, ok := a.cause(d, t)
		if a.result.Accepted[i] = ok; p.Cause != "" {
			t.changed = true
			a.result.Started[i] = a.begin(d, t, p, own)
		}
	}
	for _, id := range sortedKeys(jobs) { // the order of their notices
		if t := jobs[id]; t.changed {
			a.consumed(t)
		}
	}
	a.wake()
}

// consumed writes what decisions have made of a job.
func (a *applying) consumed(t *consuming) {
	a.touchRun(t.id)
	a.exec(`UPDATE job_state SET next = ?, fired = ?, open = ?, unplaced = ?, day = ?, day_ticks = ?, day_overlaps = ?
		WHERE job = ?`, t.next, t.fired, t.open, t.unplaced, t.day, t.ticks, t.overlaps, t.id)
	if t.missed.Event != "" {
		a.notify(a.receivers(eventMissed, t.audience, false), t.id, t.missed)
	}
	if t.was > 0 && t.open == 0 {
		a.free(ownGroup(t.id))
		a.free(mutexOf(t.mutex))
	}
	if t.failing {
		a.disableFailing(t.id)
	}
}

// countTick counts the ticks of a UTC day; if a fifth of them met a run that went on, the end of the day is a notice.
func (a *applying) countTick(t *consuming, d decision) {
	if day := d.Due / nanosPerDay; day != t.day {
		if t.overlaps*5 > t.ticks {
			why := fmt.Sprintf("%d of its %d ticks on %s were skipped because an earlier run went on",
				t.overlaps, t.ticks, timeOf(t.day*nanosPerDay).Format(time.DateOnly))
			a.notify(a.receivers(eventOverrun, t.audience, false), t.id,
				notice{Event: eventOverrun, Job: t.name, Count: t.overlaps, Reason: why})
		}
		t.day, t.ticks, t.overlaps = day, 0, 0
	}
	t.ticks += max(1, d.Count)
	if d.Event == eventOverrun {
		t.overlaps += max(1, d.Count)
	}
}

// notRun makes the notice of a cause that did not run: one for all ticks that an outage took, and one for those in a
// row for which there is no node.
func (t *consuming) notRun(d decision) {
	if d.Event != eventMissed || d.Outcome == outcomeSkipped && t.unplaced && t.missed.Event == "" {
		return
	}
	if t.missed.Event == "" {
		t.missed = notice{Event: eventMissed, Job: t.name, Due: timeOf(d.Due), Reason: d.Reason}
	}
	t.missed.Until, t.missed.Count = timeOf(max(d.Due, d.Until)), t.missed.Count+max(1, d.Count)
	t.unplaced = t.unplaced || d.Outcome == outcomeSkipped
}

// free notes that something that pending rows may wait for may be free.
func (a *applying) free(thing string) {
	if a.freed == nil {
		a.freed = map[string]int{}
	}
	a.freed[thing]++
}

// begin starts the group, or the part of a group, that a consumed cause p stands for, or has it wait, or records why it
// does not start. It may start beside own open runs of its job.
func (a *applying) begin(d decision, t *consuming, p pendingRow, own int64) (started []int64) {
	if len(d.Targets) > 0 && t.failing && p.Cause == causeTick {
		d.Targets, d.Outcome, d.Reason = nil, outcomeSkipped, failingReason
	}
	var free, full []target
	waited, runs := p.WaitsFor, len(d.Targets) > 0
	if p.WaitsFor = ""; runs {
		p.WaitsFor, d.Reason, free, full = a.place(d.Targets, t, p, own)
	}
	if waited != "" && waited != p.WaitsFor {
		a.free(waited) // for the next that waits for it
	}
	forbidden := p.WaitsFor != "" && p.WaitsFor == ownGroup(t.id) && (p.Group != 0 || !t.newest())
	if forbidden && p.Group == 0 {
		d.Event = eventOverrun
	}
	if p.Cause == causeTick && d.Pending == 0 {
		a.countTick(t, d)
	}
	byHand := p.Cause == causeHand && d.Pending == 0
	switch {
	case runs && p.WaitsFor == "":
		return a.launch(t, p, free, full)
	case runs && !forbidden && !d.Last:
		id := a.wait(p)
		if waited == "" && len(full) > 0 { // others were given that node at the same time; another may have room
			a.result.Freed = append(a.result.Freed, id)
			a.arm(a.c.Now)
		}
		if p.Group != 0 {
			t.open++
		}
		if byHand {
			a.audit(t.name, "", nil, map[string]string{"waits_for": d.Reason})
		}
		return nil
	case runs && !forbidden:
		d.Reason = fmt.Sprintf("waited %s for %s", time.Duration(a.c.Now-p.Asked).Round(time.Second), d.Reason)
	}
	if byHand {
		a.result.Refused = d.Reason
		return nil
	}
	if d.Due = p.Asked; runs {
		d.Outcome = outcomeSkipped
	}
	a.skip(p, d, t)
	return nil
}

// place returns the thing that a cause p of job t must wait for before it may start on any target, and who has it; if
// there is none, thing is "". Of the targets free have room, and full have not.
func (a *applying) place(on []target, t *consuming, p pendingRow, own int64) (thing, who string, free, full []target) {
	if thing, who = a.taken(t, p, own); thing != "" {
		return thing, who, nil, nil
	}
	if free, full = a.withRoom(on, p); len(free) == 0 {
		thing = roomOn(full[0].Node)
		who = fmt.Sprintf("%s, which runs %d at once", thing, a.c.Limits[full[0].Node])
	}
	return thing, who, free, full
}

// launch starts a cause p of job t where there is room; what it stands for elsewhere waits for that.
func (a *applying) launch(t *consuming, p pendingRow, free, full []target) []int64 {
	started := a.start(free, &p)
	t.unplaced = false
	t.open += int64(len(started) + len(full))
	for i, n := range full {
		slot := p
		slot.ID, slot.Cause, slot.slot, slot.Attempt, slot.Late = 0, causeSlot, p.slot+len(free)+i, 1, false
		slot.Node, slot.Due, slot.WaitsFor = n.Node, a.c.Now, roomOn(n.Node)
		a.wait(slot)
	}
	for _, id := range started {
		a.notifyRun(eventStart, t.audience, id, false)
	}
	if p.Cause == causeHand {
		names := make([]string, len(started))
		for i, id := range started {
			names[i] = executionName(id, free[i].Node)
		}
		a.audit(t.name, "", nil, map[string][]string{"executions": names})
	}
	return started
}

// skip records that a cause of job t did not run. The group that it belongs to may be over by that.
func (a *applying) skip(p pendingRow, d decision, t *consuming) {
	a.record(p.JobID, p.Cause, d)
	if p.Group == 0 {
		t.notRun(d)
		return
	}
	delta := &jobDelta{}
	if a.over(p.JobID, t.audience, a.attempts(p.Group, p.JobID, p.Asked), delta) {
		a.follow(p.JobID, delta)
	}
	a.count(map[int64]*jobDelta{p.JobID: delta}, nil)
	t.broken = t.audience.failed(delta)
}

// taken returns the thing that a cause p of job t must wait for before it may start on any node, and who has it; "" if
// there is none. Where only the newest run of a job waits, it takes the place of an older one, and where it replaces
// the open group, nothing more of that group starts.
func (a *applying) taken(t *consuming, p pendingRow, own int64) (thing, who string) {
	if p.Group == 0 && t.newest() {
		because := fmt.Sprintf("the run that was due at %s took its place", timeOf(p.Asked).Format(time.RFC3339))
		a.drop("job = ?1 AND grp = 0 AND waits_for <> ''", because, t, t.id)
		if t.concurrency == concurrencyReplace {
			t.open -= a.drop("job = ?1 AND grp <> 0", because, t, t.id)
		}
	}
	thing = mutexOf(t.mutex)
	switch {
	case !t.alone():
		return "", ""
	case t.open > own && t.mutex != "" && t.concurrency != concurrencyForbid && !t.newest():
		return thing, thing + ", which an earlier run had"
	case t.open > own:
		return ownGroup(t.id), overlapReason
	case t.mutex == "":
		return "", ""
	}
	if a.get(`SELECT name FROM jobs j WHERE mutex = ?1 AND mutex <> '' AND id <> ?2
		AND (EXISTS (SELECT * FROM executions WHERE job = j.id AND finished = 0)
			OR ?3 AND EXISTS (SELECT * FROM pending WHERE job = j.id AND grp <> 0)) LIMIT 1`,
		[]any{t.mutex, t.id, p.Group == 0}, &who) || p.Group == 0 && a.older(thing, p, &who) {
		return thing, thing + ", which " + who + " had"
	}
	return "", ""
}

// older returns whether a pending row waits for the same thing as p will and was due before, and the name of its job.
func (a *applying) older(thing string, p pendingRow, who *string) bool {
	return a.get("SELECT j.name FROM "+waitingSQL+" AND (asked, p.id) < (?, ?) LIMIT 1",
		[]any{thing, p.Asked, cmp.Or(p.ID, math.MaxInt64)}, who)
}

// drop skips pending rows of job t, and returns how many.
func (a *applying) drop(where, why string, t *consuming, args ...any) int64 {
	rows := applyRows[pendingRow](a, "SELECT * FROM pending WHERE "+where+" ORDER BY id", args...)
	for _, p := range rows {
		a.exec("DELETE FROM pending WHERE id = ?", p.ID)
		a.skip(p, decision{Due: p.Asked, Outcome: outcomeSkipped, Reason: why}, t)
		if p.WaitsFor != "" {
			a.free(p.WaitsFor)
		}
	}
	return int64(len(rows))
}

// withRoom splits targets into those that may run p, which is counted, and those that are full or awaited.
func (a *applying) withRoom(targets []target, p pendingRow) (free, full []target) {
	var who string
	for _, n := range targets {
		limit := a.c.Limits[n.Node]
		if limit > 0 && (a.load(n.Node) >= limit || a.older(roomOn(n.Node), p, &who)) {
			full = append(full, n)
			continue
		}
		free = append(free, n)
		if limit > 0 {
			a.running[n.Node]++
		}
	}
	return free, full
}

// load returns how many executions a node has that have not ended.
func (a *applying) load(node string) int {
	if a.running == nil {
		a.running = map[string]int{}
		for _, n := range applyRows[nodeLoad](a, nodeLoads) {
			a.running[n.Node] = n.Running
		}
	}
	return a.running[node]
}

// nodeLoad is how many executions a node has that have not ended.
type nodeLoad struct {
	Node    string
	Running int
}

const nodeLoads = "SELECT node, count(*) FROM executions WHERE finished = 0 GROUP BY node"

// barred reports whether a run may not start as it was decided, because its job is held or one of its nodes was
// drained: the leader, which did not know that then, decides again. A run by hand is refused.
func (a *applying) barred(d decision, t *consuming) bool {
	hand, held := d.Pending == 0 && d.Due == 0, a.s.settings.held(t.metadata)
	drained := slices.ContainsFunc(d.Targets, func(to target) bool {
		_, ok := a.s.settings.rules[ruleDrain][to.Node]
		return ok
	})
	switch {
	case held != "" && !d.Force:
		if hand {
			a.result.Refused = held
		}
		return true
	case drained && hand:
		a.fail(errConflict)
	}
	return drained
}

// cause consumes the cause of d, and returns it as a pending row, and how many open runs of its job it may start
// beside: for a retry or slot, the rest of its group, and retries and slots of others, which would wait for it. ok is
// false if it is to be decided again; without p.Cause there is nothing left to decide.
func (a *applying) cause(d decision, t *consuming) (p pendingRow, own int64, ok bool) {
	p = pendingRow{JobID: d.Job, Attempt: 1, Due: a.c.Now}
	switch {
	case d.Pending != 0:
		return a.pendingCause(d, t)
	case d.Due != 0:
		if t == nil || t.rev != d.Rev || !t.armed || t.next != d.Due || d.Due <= t.fired {
			return p, 0, false
		}
		t.next, t.fired = d.Next, max(d.Due, d.Until)
		a.arm(d.Next)
		p.Cause, p.Asked, p.Late = causeTick, d.Due, d.Late
	case t == nil:
		a.fail(errNoJob)
	case t.rev != d.Rev:
		a.fail(errConflict)
	case t.disabled && !d.Force:
		a.fail(errJobDisabled)
	default:
		p.Cause, p.Asked, p.Params, p.Forced = causeHand, a.c.Now, d.Params, d.Force
	}
	return p, 0, true
}

// pendingCause is cause of a pending row. One that is gone was consumed before.
func (a *applying) pendingCause(d decision, t *consuming) (p pendingRow, own int64, ok bool) {
	rows := applyRows[pendingRow](a, "SELECT * FROM pending WHERE id = ?", d.Pending)
	if len(rows) == 0 {
		return pendingRow{}, 0, true
	}
	p = rows[0]
	switch {
	case p.Cause == causeChildren && a.made < childrenMax:
		a.expand(p)
		return pendingRow{}, 0, true
	case p.Cause == causeChildren, t == nil, p.JobID != d.Job, t.rev != d.Rev:
		return pendingRow{}, 0, false
	}
	a.exec("DELETE FROM pending WHERE id = ?", d.Pending)
	if p.Group != 0 {
		t.open--
	}
	if t.alone() && p.Group != 0 {
		a.get("SELECT ? - count(*) FROM executions WHERE job = ? AND finished = 0 AND grp <> ?",
			[]any{t.open, t.id, p.Group}, &own)
	}
	return p, own, true
}

// overlapReason is why a run that concurrency forbids did not start, where the leader could not yet name the execution.
const overlapReason = "overlap with a run of the job that had not ended"

const failingReason = "the job is about to be disabled: as many runs in a row have failed as its disable_after allows"

// counts has something counted once it has committed.
func (a *applying) counts(count func(*stats)) { a.s.counts = append(a.s.counts, count) }

// record notes what did not run, and why.
func (a *applying) record(job int64, cause string, d decision) {
	if cause == causeTick {
		n := max(1, d.Count)
		a.exec(`UPDATE job_state SET skipped = skipped + iif(?2 = 'skipped', ?3, 0),
			missed = missed + iif(?2 = 'missed', ?3, 0) WHERE job = ?1`, job, d.Outcome, n)
		a.counts(func(s *stats) { s.decided(d.Outcome, d.Reason, n) })
	}
	a.s.mark(eventJob, job)
	a.exec("INSERT INTO ticks VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
		a.key(), job, cause, d.Due, max(d.Due, d.Until), max(1, d.Count), d.Outcome, d.Reason)
}

// start writes the executions of a group, or of a retry or slot of p.Group, and sets p.Group. It returns the ids.
func (a *applying) start(targets []target, p *pendingRow) (ids []int64) {
	cause, params := p.Cause, jsonText(p.Params)
	if cause == causeSlot {
		a.get("SELECT cause, late FROM executions WHERE id = ?", []any{p.Group}, &cause, &p.Late)
	}
	for i, t := range targets {
		id := a.key()
		if p.Group == 0 {
			p.Group = id
		}
		a.exec("INSERT INTO executions VALUES (?,?,?,?,?,?,?,?,?,?,?,0,'',0,NULL,'',0,0,?)", id, p.JobID, p.Group,
			p.slot+i, p.Attempt, t.Node, int64(t.Incarnation), cause, p.Asked, p.Late, a.c.Now, params)
		a.s.mark(eventStarted, id)
		ids = append(ids, id)
	}
	return ids
}

// expand puts the children of a job that wait for such an end in the place of the row that stands for all of them: due
// now, whatever clock made that row. Of many such rows a command expands as many as one transaction should.
func (a *applying) expand(p pendingRow) {
	a.exec("DELETE FROM pending WHERE id = ?", p.ID)
	children := applyRows[int64](a, "SELECT c.id FROM jobs j JOIN jobs c ON "+childOfJob+
		" WHERE j.id = ? AND j.deleted = 0 AND c.parent_on IN (?, 'any') ORDER BY c.id", p.JobID, p.Node)
	for _, child := range children {
		a.wait(pendingRow{Cause: causeChild, JobID: child, Attempt: 1, Due: a.c.Now, Asked: p.Asked})
	}
	a.made += len(children)
}

// bind moves those executions that are unfinished and still with the process that did not take them.
func (a *applying) bind(list []binding) {
	a.result.Bound, a.result.Accepted, a.result.Started = true, make([]bool, len(list)), make([][]int64, len(list))
	for i, b := range list {
		var there string
		if limit := a.c.Limits[b.To.Node]; limit > 0 && a.load(b.To.Node) >= limit &&
			a.get("SELECT node FROM executions WHERE id = ?", []any{b.Execution}, &there) && there != b.To.Node {
			continue // the leader finds it another node, or this one again
		}
		n := a.exec("UPDATE executions SET node = ?, incarnation = ? WHERE id = ? AND incarnation = ? AND finished = 0",
			b.To.Node, int64(b.To.Incarnation), b.Execution, int64(b.Incarnation))
		if a.result.Accepted[i] = n == 1; n == 1 {
			a.result.Started[i] = []int64{b.Execution}
			a.running = nil
			a.s.mark(eventStarted, b.Execution) // under the name that it has now
		}
	}
}

// ended is an unfinished execution, with what its job says of what follows.
type ended struct {
	retries           int64
	again             bool // delivery is at least once
	alive             bool // the job is not deleted
	sole              bool // no other execution, and no pending row, is of its group
	followed          bool // its job has children or is ephemeral
	delay, delayLimit string
	mutex             string
	audience
	executionRow
	attempts []attempt // of its group, if it is the sole one
}

// jobDelta is what a command adds to the state of a job.
type jobDelta struct {
	success, failed, lastSuccess, lastError, open, kept int64
	failures                                            int64  // in a row, of groups, since the last success
	succeeded                                           bool   // a group did
	status                                              string // '': as it was
	ran, late, missed                                   int64  // ticks
	over                                                string // how the last group that is over has ended
}

// finish ends executions, and makes pending what must follow in the same command. A report counts if it is of the
// process that has the execution, and if that has not ended. A lost one may still be ended by its node, but not by the
// leader.
func (a *applying) finish(reports []report) {
	rows := a.unfinished(reports)
	deltas, days := map[int64]*jobDelta{}, map[int64]*[2]int64{}
	var ends, groups []*ended
	place := map[int64]int{} // of a group in groups
	for _, r := range reports {
		e := rows[r.Execution]
		if e == nil || r.Incarnation != e.incarnation || r.Closed && e.Outcome != "" || !r.Closed && r.Node != e.Node {
			continue
		}
		delete(rows, r.Execution) // a second report in the same command changes nothing
		a.end(e, r, deltas, days)
		ends = append(ends, e)
		switch i, ok := place[e.Group]; {
		case e.alive && !ok:
			place[e.Group] = len(groups)
			groups = append(groups, e)
		case e.alive && groups[i].Outcome == outcomeLost:
			groups[i] = e // from one that was lost nothing follows, from this one it may
		}
	}
	for _, e := range groups {
		a.settle(e, deltas[e.JobID])
	}
	a.count(deltas, days)
	if a.get("SELECT 1 FROM pending WHERE waits_for <> '' LIMIT 1", nil, new(int)) {
		for _, e := range ends {
			if e.Outcome != outcomeLost {
				a.free(roomOn(e.Node))
				a.free(ownGroup(e.JobID))
				a.free(mutexOf(e.mutex))
			}
		}
		a.wake()
	}
	a.audit("", "", nil, nil)
}

// unfinished reads the executions of reports that have not ended, or are lost.
func (a *applying) unfinished(reports []report) map[int64]*ended {
	ids := make([]int64, len(reports))
	for i, r := range reports {
		ids[i] = r.Execution
	}
	rows := map[int64]*ended{}
	// Nothing is retried of a group that is being replaced.
	for _, e := range applyRows[ended](a, `SELECT iif(j.concurrency = 'replace' AND EXISTS (SELECT * FROM pending p
			WHERE p.waits_for = 'job ' || j.id AND p.waits_for <> ''), 0, j.retries),
		j.delivery = 'at-least-once', j.deleted = 0,
		e.id = e.grp AND NOT EXISTS (SELECT * FROM executions m WHERE m.grp = e.id AND m.grp <> m.id)
			AND NOT EXISTS (SELECT * FROM pending p WHERE p.grp = e.id AND p.grp <> 0)
			AND NOT EXISTS (SELECT * FROM ticks t WHERE t.job = e.job AND t.due = e.due AND t.cause = 'slot'),
		j.ephemeral OR EXISTS (SELECT * FROM jobs c WHERE `+childOfJob+`),
		coalesce(j.doc ->> 'retry_delay', ''), coalesce(j.doc ->> 'retry_max_delay', ''), j.mutex,
		`+audienceColumns+`, e.*, j.name FROM json_each(?) JOIN executions e ON e.id = value JOIN jobs j ON j.id = e.job
		LEFT JOIN job_state s ON s.job = j.id WHERE e.finished = 0 OR e.outcome = 'lost'`,
		jsonText(ids)) {
		rows[e.ID] = &e
	}
	return rows
}

// end finishes one execution and makes its retry pending. If it was lost before, it is counted and that is all.
func (a *applying) end(e *ended, r report, deltas map[int64]*jobDelta, days map[int64]*[2]int64) {
	a.exec(`UPDATE executions SET started = ?, finished = ?, outcome = ?, dropped = ?,
			exit_code = ?, signal = ?, cpu = ?, memory = ? WHERE id = ?`,
		cmp.Or(r.Started, e.Started), r.Finished, r.Outcome, r.Dropped,
		r.Process.ExitCode, r.Process.Signal, r.Process.CPU, r.Process.Memory, e.ID)
	e.attempts = []attempt{{e.ID, e.slot, r.Finished, r.Outcome}}
	a.s.mark(eventEnded, e.ID)
	a.counts(func(s *stats) { s.ran(r.Outcome) })
	reason := r.Output[:min(max(0, r.Reason), len(r.Output))]
	a.keepOutput(e, r.Output, len(reason))
	if a.s.failed != nil && r.Outcome != outcomeSuccess {
		failure := e.executionRow
		failure.Outcome, failure.Reason = r.Outcome, reason
		a.s.failures = append(a.s.failures, failure)
	}
	d := entryOf(deltas, e.JobID)
	d.add(r, entryOf(days, r.Finished/nanosPerDay))
	if e.Outcome == outcomeLost {
		return
	}
	switch r.Outcome {
	case outcomeMissed:
		a.notifyRun(eventMissed, e.audience, e.ID, false)
	case outcomeLost:
		a.notifyRun(eventEnd, e.audience, e.ID, false)
		a.notifyRun(eventLost, e.audience, e.ID, false)
	default:
		a.notifyRun(eventEnd, e.audience, e.ID, false)
	}
	if e.Cause == causeTick && e.ID == e.Group { // the first of its group: by its end a node took the order, or none
		a.tickRan(e, r, d)
	}
	d.open--
	d.kept++
	if !e.alive || !retried(r.Outcome) && !(e.again && r.Outcome == outcomeLost) || int64(e.Attempt) > e.retries {
		return
	}
	d.open++
	a.wait(pendingRow{Cause: causeRetry, JobID: e.JobID, Group: e.Group, Attempt: e.Attempt + 1, Node: e.Node,
		slot: e.slot, Asked: e.Due, Params: e.Params,
		Due: a.c.Now + int64(retryDelay(e.delay, e.delayLimit, e.Attempt))})
	e.attempts = append(e.attempts, attempt{slot: e.slot})
}

// entryOf returns the entry of a map, which it makes if there is none.
func entryOf[V any](m map[int64]*V, key int64) *V {
	if m[key] == nil {
		m[key] = new(V)
	}
	return m[key]
}

// keepOutput stores an output that begins with the reason of a failure. If e was lost, the one that it has says so.
func (a *applying) keepOutput(e *ended, output []byte, reason int) {
	if e.Outcome == outcomeLost {
		a.exec("DELETE FROM outputs WHERE execution = ?", e.ID)
	}
	if cut := max(reason, len(output)-tailBytes); len(output) > 0 {
		a.exec("INSERT OR REPLACE INTO outputs VALUES (?, ?, ?, ?)",
			e.ID, nonNil(output[:reason]), nonNil(output[cut:]), nonNil(output[reason:cut]))
	}
}

// tickRan counts the outcome of the tick that e was started for.
func (a *applying) tickRan(e *ended, r report, d *jobDelta) {
	outcome, why := outcomeRan, ""
	switch {
	case r.Outcome == outcomeMissed:
		d.missed++
		outcome, why = outcomeMissed, "no node took the order"
	case e.Late:
		d.late++
		outcome = outcomeLate
	default:
		d.ran++
	}
	a.counts(func(s *stats) { s.decided(outcome, why, 1) })
}

// add counts a report for its job and for its day.
func (d *jobDelta) add(r report, day *[2]int64) {
	switch {
	case r.Outcome == outcomeSuccess:
		d.success++
		d.lastSuccess = max(d.lastSuccess, r.Finished)
		day[0]++
	case !undecided(r.Outcome):
		d.failed++
		d.lastError = max(d.lastError, r.Finished)
		day[1]++
	}
}

// undecided reports whether an outcome is neither a success nor a failure.
func undecided(outcome string) bool { return outcome == outcomeLost || outcome == outcomeMissed }

const retryWaitMax = time.Minute // between attempts of a job without retry_delay

// retried reports whether an outcome is a failure that retries follow.
func retried(outcome string) bool {
	return outcome == outcomeFailed || outcome == outcomeInterrupted
}

// retryDelay returns how long the attempt after a failed one waits: retry_delay, doubled with each attempt up to
// retry_max_delay; without that it stays, and without both it grows from a second to retryWaitMax.
func retryDelay(first, longest string, attempt int) time.Duration {
	delay, limit := time.Second, retryWaitMax
	if d, err := time.ParseDuration(first); err == nil {
		delay, limit = d, d
	}
	if d, err := time.ParseDuration(longest); err == nil {
		limit = d
	}
	for ; attempt > 1 && delay < limit; attempt-- {
		delay *= 2
	}
	return min(delay, limit)
}

// An attempt is an execution of a group; or one that is pending, which has not ended; or a slot given up, as missed.
type attempt struct {
	id       int64
	slot     int
	finished int64
	outcome  string
}

// attempts returns the attempts of a group, oldest first, the pending last. Its job was due at that time.
func (a *applying) attempts(group, job, due int64) []attempt {
	return applyRows[attempt](a, `SELECT id, slot, finished, outcome FROM executions WHERE id = ?1
		UNION ALL SELECT * FROM (SELECT id, slot, finished, outcome FROM executions
			WHERE grp = ?1 AND grp <> id ORDER BY id)
		UNION ALL SELECT 0, slot, 0, '' FROM pending WHERE grp = ?1 AND grp <> 0
		UNION ALL SELECT 0, -1, due, 'missed' FROM ticks WHERE job = ?2 AND due = ?3 AND cause = 'slot'`,
		group, job, due)
}

// settle gives the job the status of the group that e has ended in. After a lost execution nothing follows.
func (a *applying) settle(e *ended, d *jobDelta) {
	if !e.sole {
		e.attempts = a.attempts(e.Group, e.JobID, e.Due)
	}
	success, failed := false, false
	for _, r := range e.attempts {
		success = success || r.outcome == outcomeSuccess
		failed = failed || r.finished != 0 && r.outcome != outcomeSuccess && !undecided(r.outcome)
	}
	switch {
	case success && failed:
		d.status = statusPartial
	case success:
		d.status = statusSuccess
	case failed:
		d.status = statusFailed
	}
	if e.Outcome != outcomeLost && a.over(e.JobID, e.audience, e.attempts, d) && e.followed {
		a.follow(e.JobID, d)
	}
}

// How a group ended, and the values of a child's parent_on, which says what it follows; empty is onSuccess.
const (
	onSuccess = "success"
	onFailure = "failure"
	onAny     = "any"
)

// over reports whether a group has succeeded or failed: nothing of it runs or is to be retried, and of the last
// attempts on each node none was killed. It has failed if one of these failed or was interrupted.
func (a *applying) over(job int64, who audience, group []attempt, d *jobDelta) bool {
	last, how := map[int]attempt{}, onSuccess
	var succeeded, failed int64 // newest execution that has
	for _, r := range group {
		last[r.slot] = r
		if r.outcome == outcomeSuccess {
			succeeded = max(succeeded, r.id)
		} else if retried(r.outcome) {
			failed = max(failed, r.id)
		}
	}
	for _, r := range last {
		switch {
		case r.finished == 0 || r.outcome == outcomeKilled:
			return false
		case retried(r.outcome):
			how = onFailure
		case r.outcome != outcomeSuccess && how == onSuccess:
			how = ""
		}
	}
	switch how {
	case "":
		return false
	case onSuccess:
		if who.failed(d) {
			a.notifyRun(eventRecovered, who, succeeded, false)
		}
		d.failures, d.succeeded = 0, true
	case onFailure:
		a.notifyRun(eventFailed, who, failed, who.failed(d))
		d.failures++
	}
	d.over = how
	return true
}

// Values of a job's status, as Dkron names them; empty is a job that never ran.
const (
	statusSuccess = "success"
	statusFailed  = "failed"
	statusPartial = "partially_failed"
)

// follow makes one row pending for all children of a job that wait for such an end of its group, or deletes the job if
// it is ephemeral and has succeeded. A job that others depend on stays, as it cannot be deleted by a call either.
func (a *applying) follow(id int64, d *jobDelta) {
	var ephemeral bool
	var children, waiting int
	a.get(`SELECT j.ephemeral, count(c.id), coalesce(sum(c.parent_on IN (?2, 'any')), 0)
		FROM jobs j LEFT JOIN jobs c ON `+childOfJob+` WHERE j.id = ?1 AND j.deleted = 0 GROUP BY j.id`,
		[]any{id, d.over}, &ephemeral, &children, &waiting)
	switch {
	case waiting > 0:
		a.wait(pendingRow{Cause: causeChildren, JobID: id, Attempt: 1, Node: d.over, Due: a.c.Now, Asked: a.c.Now})
	case ephemeral && children == 0 && d.over == onSuccess:
		a.softDelete(id)
	}
}

// count adds what has ended to the state of jobs, if they are not deleted, and to the daily statistics.
func (a *applying) count(deltas map[int64]*jobDelta, days map[int64]*[2]int64) {
	for _, id := range sortedKeys(deltas) {
		d := deltas[id]
		a.touchRun(id)
		a.exec(`UPDATE job_state SET success_count = success_count + ?, error_count = error_count + ?,
			last_success = max(last_success, ?), last_error = max(last_error, ?),
			open = open + ?, kept = kept + ?, status = iif(? <> '', ?, status), failures = iif(?, 0, failures) + ?,
			broken = iif(?, 1, iif(?, 0, broken)), heard = iif(?, ?, heard),
			ran = ran + ?, late = late + ?, missed = missed + ? WHERE job = ?`,
			d.success, d.failed, d.lastSuccess, d.lastError, d.open, d.kept, d.status, d.status,
			d.succeeded, d.failures, d.failures > 0, d.succeeded, d.success > 0, d.lastSuccess,
			d.ran, d.late, d.missed, id)
		if d.failures > 0 {
			a.disableFailing(id)
		}
	}
	for day, n := range days {
		a.exec(`INSERT INTO stats VALUES (?, ?, ?) ON CONFLICT DO UPDATE
			SET success = success + excluded.success, failed = failed + excluded.failed`, day, n[0], n[1])
	}
}

// disableFailing disables a job with as many failed groups in a row as it allows, unless a tick is due: that needs an
// outcome, so consume does it then.
func (a *applying) disableFailing(id int64) {
	type row struct {
		was job
		audience
	}
	for _, r := range applyRows[row](a, `SELECT j.doc, `+audienceColumns+` FROM jobs j JOIN job_state s ON s.job = j.id
		WHERE j.id = ? AND deleted = 0 AND disabled = 0 AND disable_after BETWEEN 1 AND failures
			AND (NOT armed OR next > ? OR next = ?)`, id, a.c.Now, int64(never)) {
		j, why := r.was, fmt.Sprintf("%d runs in a row have failed", r.was.DisableAfter)
		j.Disabled = true
		a.touch(id)
		a.exec("UPDATE job_state SET fires = 0 WHERE job = ?", id)
		a.exec("UPDATE jobs SET rev = ?, doc = ? WHERE id = ?", int64(a.result.Index), j.document(), id)
		asked := a.c.Audit
		a.c.Audit = &audited{Action: actionDisable}
		a.audit(j.Name, why, &r.was, &j)
		a.c.Audit = asked
		a.notify(a.receivers(eventFailed, r.audience, false), id,
			notice{Event: eventFailed, Job: j.Name, Reason: "it is disabled: " + why})
	}
}

// An audience is who listens to what happens to a job.
type audience struct {
	name, owner string
	doc         string // the job's definition if it names receivers, else ''
	broken      bool   // as in job_state
}

// failed reports whether the last group of the job that succeeded or failed has failed. d is what has ended since.
func (w audience) failed(d *jobDelta) bool { return d.failures > 0 || w.broken && !d.succeeded }

const audienceColumns = "j.name, j.owner_email, iif(j.listens, j.doc, ''), coalesce(s.broken, 0)"

// receivers returns who gets a notice; again: only those who want one of every failure, as the job failed before.
func (a *applying) receivers(event string, who audience, again bool) (list []string) {
	for _, r := range a.c.Listeners[event] {
		switch {
		case again, r == receiverOwner && who.owner == "":
		case r == receiverOwner:
			list = append(list, r+who.owner)
		default:
			list = append(list, r)
		}
	}
	if who.doc != "" {
		var j job
		a.fail(json.Unmarshal([]byte(who.doc), &j))
		list = append(list, j.receivers(event, again)...)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// notify makes a notice for each receiver.
func (a *applying) notify(receivers []string, job int64, n notice) {
	doc := jsonText(n)
	for _, r := range receivers {
		a.exec("INSERT INTO notices VALUES (?, ?, ?, ?, ?, ?)", a.key(), n.Event, job, r, a.c.Now, doc)
	}
	a.s.settings.notices += len(receivers)
	a.result.Noticed = a.result.Noticed || len(receivers) > 0
}

// notifyRun is notify of what happened to an execution.
func (a *applying) notifyRun(event string, who audience, execution int64, again bool) {
	receivers := a.receivers(event, who, again)
	if len(receivers) == 0 {
		return
	}
	const query = "SELECT " + executionColumns + executionTables + "WHERE e.id = ?2"
	for _, e := range applyRows[executionRow](a, query, noticeBytes, execution) {
		a.notify(receivers, e.JobID, e.notice(event))
	}
}

// notice describes an execution to those who listen.
func (e *executionRow) notice(event string) notice {
	e.cut(len(e.Reason) + noticeBytes)
	n := notice{Event: event, Job: e.JobName, Execution: executionName(e.ID, e.Node), Group: e.Group, Node: e.Node,
		Attempt: e.Attempt, Due: timeOf(e.Due), Started: timeOf(e.Started), Outcome: e.Outcome,
		Reason: strings.TrimSpace(string(e.Reason)), Output: string(e.Output[len(e.Reason):])}
	if e.Finished != 0 {
		n.Finished = timeOf(e.Finished)
	}
	return n
}

// boundNotices gives up the oldest notices beyond noticesMax, of single runs before others.
func (a *applying) boundNotices() {
	for _, of := range []string{"WHERE event IN ('start', 'end') ", ""} {
		if surplus := a.s.settings.notices - noticesMax; surplus > 0 {
			ids := applyRows[int64](a, "SELECT id FROM notices "+of+"ORDER BY id LIMIT ?", surplus)
			a.loseNotices(ids)
			a.result.Untold += len(ids)
		}
	}
}

// occasions makes notices of what there was none of before.
func (a *applying) occasions(list []occasion) {
	for _, o := range list {
		var who audience
		if o.Job != 0 {
			n := a.exec(`UPDATE job_state SET overdue = max(overdue, ?2), heard = iif(?2 = 0, ?4, heard) WHERE job = ?1
				AND iif(?2 = 0, heard = ?3,
					overdue < ?2 AND EXISTS (SELECT * FROM executions WHERE id = ?2 AND finished = 0))`,
				o.Job, o.Execution, o.Heard, int64(never))
			if n == 0 {
				continue
			}
			a.get("SELECT "+audienceColumns+" FROM jobs j JOIN job_state s ON s.job = j.id WHERE j.id = ?",
				[]any{o.Job}, &who.name, &who.owner, &who.doc, &who.broken)
		}
		a.notify(a.receivers(o.Notice.Event, who, false), o.Job, o.Notice)
	}
}

// delivered removes notices that are done with.
func (a *applying) delivered(t *deliveries) {
	n := a.dropNotices(t.Taken)
	a.counts(func(s *stats) { s.told.Add(int64(n)) })
	a.loseNotices(t.Lost)
	a.dropNotices(t.Void)
}

func (a *applying) dropNotices(ids []int64) int {
	n := int(a.exec("DELETE FROM notices WHERE id IN (SELECT value FROM json_each(?))", jsonText(ids)))
	a.s.settings.notices -= n
	return n
}

// loseNotices removes notices that reached no receiver, and counts them for their jobs.
func (a *applying) loseNotices(ids []int64) {
	type count struct{ job, n int64 }
	for _, c := range applyRows[count](a, `SELECT job, count(*) FROM notices
		WHERE id IN (SELECT value FROM json_each(?)) GROUP BY job`, jsonText(ids)) {
		a.touch(c.job)
		a.exec("UPDATE job_state SET notices_lost = notices_lost + ? WHERE job = ?", c.n, c.job)
	}
	n := a.dropNotices(ids)
	a.counts(func(s *stats) { s.untold.Add(int64(n)) })
}

// reset takes back ticks decided by a clock ahead of its time, and changes rev so that no next follows from them.
func (a *applying) reset(list []reset) {
	for _, r := range list {
		n := a.exec(`UPDATE job_state SET fired = ?, next = ? WHERE job = ? AND fired = ?
			AND EXISTS (SELECT * FROM jobs WHERE id = job AND rev = ? AND deleted = 0)`,
			a.c.Now, r.Next, r.Job, r.Fired, r.Rev)
		if n == 0 {
			continue
		}
		a.touch(r.Job)
		a.arm(r.Next)
		a.exec("UPDATE jobs SET rev = ? WHERE id = ?", int64(a.result.Index), r.Job)
		a.drop("job = ?1 AND asked > ?2 AND cause = 'tick'", r.Reason, &consuming{}, r.Job, a.c.Now) // it comes again
		a.record(r.Job, causeClock, decision{Due: a.c.Now, Outcome: outcomeSkipped, Reason: r.Reason})
	}
}

func (a *applying) seeNodes(list []nodeSeen) {
	for _, n := range list {
		var failed int64
		known := a.get("SELECT failed FROM nodes WHERE name = ?", []any{n.Name}, &failed)
		what := notice{Node: n.Name}
		switch {
		case n.Gone && n.Failed && known:
			a.exec("UPDATE nodes SET failed = ? WHERE name = ? AND failed = 0", a.c.Now, n.Name)
			what.Event, what.Reason = eventNodeFailed, "node "+n.Name+" does not answer"
		case n.Gone:
			a.exec("DELETE FROM nodes WHERE name = ?", n.Name)
		default:
			a.exec("INSERT OR REPLACE INTO nodes VALUES (?, ?, 0)", n.Name, jsonText(n.Tags))
			if failed != 0 {
				what.Event, what.Reason = eventNodeBack, "node "+n.Name+" answers again"
			}
		}
		a.notify(a.receivers(what.Event, audience{}, false), 0, what)
	}
	a.exec("DELETE FROM nodes WHERE failed BETWEEN 1 AND ?", a.c.Now-nanosPerDay)
}

func (a *applying) trim(t *trimming) {
	for _, c := range t.Executions {
		a.dropExecutions(c)
	}
	for _, c := range t.Ticks {
		a.dropTicks(c)
	}
	for _, id := range t.Jobs {
		a.purge(id)
	}
	// The orders are those of the indexes: they cost nothing, and without one it would be up to SQLite which rows go.
	a.exec(`DELETE FROM staged WHERE id IN
		(SELECT id FROM staged WHERE restore = ? ORDER BY name, id LIMIT ?)`, t.Restore, stagedRows)
	a.exec(`DELETE FROM tick_days WHERE (job, day) IN
		(SELECT job, day FROM tick_days WHERE day < ? ORDER BY day, job LIMIT ?)`, t.Day, sliceRows)
	a.exec("DELETE FROM requests WHERE idx <= ?", int64(t.Requests))
	a.exec("DELETE FROM audit WHERE id <= ?", t.Audit)
	a.exec("DELETE FROM stats WHERE day < ?", t.Day)
	a.audit("", "", nil, nil)
}

// dropTicks adds a job's oldest skipped and missed ticks to the daily counts, a range to the day of its first.
func (a *applying) dropTicks(c cut) {
	a.exec(`INSERT INTO tick_days SELECT job, due / 86400000000000, 0, 0,
		sum(iif(outcome = 'skipped', count, 0)), sum(iif(outcome = 'missed', count, 0)) FROM ticks
		WHERE job = ? AND id <= ? AND cause = 'tick' GROUP BY 2 `+addTicksSQL, c.Job, c.Upto)
	a.exec("DELETE FROM ticks WHERE job = ? AND id <= ?", c.Job, c.Upto)
}

// purge drops a slice of the rows of a deleted job, and with the last of them the job, if none of it runs.
func (a *applying) purge(id int64) {
	a.dropExecutions(cut{Job: id, Upto: math.MaxInt64})
	var left int
	if a.get("SELECT count(*) FROM executions WHERE job = ?", []any{id}, &left); left > 0 {
		return
	}
	a.exec("DELETE FROM ticks WHERE job = ?", id)
	a.exec("DELETE FROM tick_days WHERE job = ?", id)
	a.exec("DELETE FROM jobs WHERE id = ? AND deleted <> 0", id)
}

// jobRow is a job with its state. Its JSON is what the API shows.
type jobRow struct {
	job           // the definition, with the record as it is now
	doc           []byte
	Status        string
	NoticesLost   int64
	DependentJobs json.RawMessage
	version       jobVersion
	next          int64
	fired         int64
	open          int64
}

// A jobView is a job as Dkron's clients expect it: all of Dkron's fields, in whatever form, and ours if not empty.
type jobView struct {
	ID             string          `json:"id"` // Dkron's: the name
	Name           string          `json:"name"`
	DisplayName    string          `json:"displayname"`
	Schedule       string          `json:"schedule"`
	Timezone       string          `json:"timezone"`
	Owner          string          `json:"owner"`
	OwnerEmail     string          `json:"owner_email"`
	SuccessCount   int64           `json:"success_count"`
	ErrorCount     int64           `json:"error_count"`
	LastSuccess    instant         `json:"last_success"`
	LastError      instant         `json:"last_error"`
	Disabled       bool            `json:"disabled"`
	Tags           json.RawMessage `json:"tags"`
	Metadata       json.RawMessage `json:"metadata"`
	Retries        int64           `json:"retries"`
	DependentJobs  json.RawMessage `json:"dependent_jobs"`
	ParentJob      string          `json:"parent_job"`
	Processors     json.RawMessage `json:"processors"`
	Concurrency    string          `json:"concurrency"`
	Executor       string          `json:"executor"`
	ExecutorConfig json.RawMessage `json:"executor_config"`
	Status         string          `json:"status"`
	Next           time.Time       `json:"next"`
	Ephemeral      bool            `json:"ephemeral"`
	StartsAt       instant         `json:"starts_at"`
	ExpiresAt      instant         `json:"expires_at"`
	NoticesLost    int64           `json:"notices_lost,omitempty"` // ours
	job
}

// MarshalJSON implements json.Marshaler.
func (r *jobRow) MarshalJSON() ([]byte, error) {
	v := jobView{ID: r.Name, SuccessCount: r.SuccessCount, ErrorCount: r.ErrorCount, LastSuccess: r.LastSuccess,
		LastError: r.LastError, DependentJobs: r.DependentJobs, Processors: rawJSON("{}"), Status: r.Status,
		Next: timeOf(r.next), NoticesLost: r.NoticesLost}
	if err := json.Unmarshal(r.doc, &v); err != nil {
		return nil, err
	}
	return json.Marshal(v)
}

const jobColumns = `j.id, j.rev, j.doc, s.next, s.fired, s.open,
	s.success_count, s.error_count, s.last_success, s.last_error, s.status, s.notices_lost,
	(SELECT json_group_array(name) FROM (SELECT c.name FROM jobs c WHERE ` + childOfJob + ` ORDER BY c.name))`

// childOfJob is true of the jobs c that depend on the job j.
const childOfJob = "c.parent_job = j.name AND c.parent_job <> '' AND c.deleted = 0"

// rawJSON copies a column, which is valid until the next row only.
func rawJSON[T ~[]byte | ~string](column T) json.RawMessage {
	return append(json.RawMessage{}, column...)
}

// timeOf returns a column of nanoseconds as a time in UTC; never is the zero time, as Dkron shows it.
func timeOf(nanos int64) time.Time {
	if nanos == never {
		return time.Time{}
	}
	return time.Unix(0, nanos).UTC()
}

// countJobs returns the number of jobs that are not deleted.
func (s *reader) countJobs() (int, error) {
	return valueOf[int](s.viewEach, "SELECT count(*) FROM job_state")
}

// jobNumbers returns the numbers of jobs that globs match, of any if these are nil: at most so many, failing ones
// first, of the others the first by name, which are found without a look at the wide rows.
func (s *reader) jobNumbers(globs []string, most int) ([]jobNumbers, error) {
	return rowsOf[jobNumbers](s.viewEach, `WITH shown AS MATERIALIZED (
			SELECT * FROM (SELECT id FROM job_state s CROSS JOIN jobs j ON j.id = s.job
				WHERE s.failures > 0 AND `+anyName("?1")+` ORDER BY s.job LIMIT ?2)
			UNION ALL SELECT * FROM (SELECT id FROM jobs j CROSS JOIN job_state s ON s.job = j.id
				WHERE deleted = 0 AND `+anyName("?1")+` AND s.failures = 0 ORDER BY name LIMIT ?2) LIMIT ?2)
		SELECT name, s.failures > 0, s.last_success, s.success_count, s.error_count,
			coalesce((SELECT finished - started FROM executions e
				WHERE e.job = s.job AND finished <> 0 ORDER BY id DESC LIMIT 1), -1),
			coalesce((SELECT min(started) FROM executions e WHERE e.job = s.job AND finished = 0), 0),
			s.ran, s.late, s.skipped, s.missed, max_runtime, max_silence
		FROM shown CROSS JOIN jobs USING (id) JOIN job_state s ON s.job = id
		ORDER BY s.failures = 0, name`, jsonText(globs), most)
}

// job returns the job of that name, or errNoJob.
func (s *reader) job(name string) (*jobRow, error) {
	jobs, err := s.collectJobs("j.name = ?", name)
	return only(jobs, err, errNoJob)
}

// jobsByID returns the jobs that have the given ids, in that order. Deleted jobs are left out.
func (s *reader) jobsByID(ids []int64) ([]*jobRow, error) {
	jobs, err := s.collectJobs("j.id IN (SELECT value FROM json_each(?))", jsonText(ids))
	place := make(map[int64]int, len(ids))
	for i, id := range ids {
		place[id] = i
	}
	slices.SortFunc(jobs, func(a, b *jobRow) int { return place[a.version.ID] - place[b.version.ID] })
	return jobs, err
}

func (s *reader) collectJobs(where string, arg any) (jobs []*jobRow, err error) {
	query := "SELECT " + jobColumns + " FROM jobs j JOIN job_state s ON s.job = j.id WHERE j.deleted = 0 AND " + where
	err = s.viewEach(query, []any{arg}, func(scan scanner) error {
		var j jobRow
		var dependents sql.RawBytes
		err := scan(&j.version.ID, &j.version.Rev, &j.doc, &j.next, &j.fired, &j.open,
			&j.SuccessCount, &j.ErrorCount, &j.LastSuccess, &j.LastError, &j.Status, &j.NoticesLost, &dependents)
		if string(dependents) != "[]" {
			j.DependentJobs = rawJSON(dependents)
		}
		jobs = append(jobs, &j)
		return cmp.Or(err, json.Unmarshal(j.doc, &j.job))
	})
	return jobs, err
}

// A jobFilter selects and orders jobs. The zero value selects all, by name.
type jobFilter struct {
	Text     string // part of name or displayname, case-sensitive
	Status   string // a status, "untriggered" or "failing"
	Disabled string // "true" or "false"
	Executor string
	Owner    string
	Metadata map[string]string // all of them
	Globs    []string          // the name matches one of these patterns; nil: any name
	Sort     string            // a field that jobOrder knows
	Desc     bool
}

// jobOrder maps the fields that a list can be sorted by to SQL. Jobs without a time come after those that have one,
// and in both directions those that no schedule fires next come last.
var jobOrder = map[string]string{
	"": "j.name", "id": "j.name", "name": "j.name", "displayname": "j.displayname COLLATE NOCASE",
	"schedule": "j.schedule", "timezone": "j.timezone", "owner": "j.owner", "owner_email": "j.owner_email",
	"disabled": "j.disabled", "tags": "j.tags", "metadata": "j.metadata", "executor": "j.executor",
	"executor_config": "j.executor_config", "processors": "j.processors", "retries": "j.retries",
	"concurrency": "j.concurrency", "ephemeral": "j.ephemeral", "parent_job": "j.parent_job",
	"starts_at":  "iif(j.starts_at = 0, 9e99, j.starts_at)",
	"expires_at": "iif(j.expires_at = 0, 9e99, j.expires_at)",
	"next":       "NOT (s.fires AND s.next > 0), s.next", "status": "s.status",
	"success_count": "s.success_count", "error_count": "s.error_count",
	"last_success": "iif(s.last_success = 0, 9e99, s.last_success)",
	"last_error":   "iif(s.last_error = 0, 9e99, s.last_error)",
}

// query returns the statement for the ids of the jobs that f selects, in order, and its arguments.
func (f jobFilter) query() (query string, args []any) {
	query = "SELECT j.id FROM jobs j"
	if f.volatile() {
		query += " JOIN job_state s ON s.job = j.id"
	}
	query += " WHERE j.deleted = 0"
	add := func(condition string, a ...any) {
		query, args = query+" AND "+condition, append(args, a...)
	}
	if f.Text != "" {
		add("(instr(j.name, ?) > 0 OR instr(j.displayname, ?) > 0)", f.Text, f.Text)
	}
	if f.Status == "failing" {
		add("s.failures > ?", 0)
	} else if f.Status != "" {
		add("s.status = coalesce(nullif(?, 'untriggered'), '')", f.Status)
	}
	is := func(column, value string) {
		if value != "" {
			add(column+" = ?", value)
		}
	}
	is("j.owner", f.Owner)
	is("CAST(iif(j.disabled, 'true', 'false') AS TEXT)", f.Disabled)
	is("j.executor", f.Executor)
	for _, k := range sortedKeys(f.Metadata) {
		add("EXISTS (SELECT * FROM json_each(j.metadata) WHERE key = ? AND value = ?)", k, f.Metadata[k])
	}
	if f.Globs != nil {
		add("EXISTS (SELECT * FROM json_each(?) WHERE j.name GLOB value)", jsonText(f.Globs))
	}
	query += " ORDER BY " + jobOrder[f.Sort] + direction(f.Desc)
	if jobOrder[f.Sort] != "j.name" {
		query += ", j.name" + direction(f.Desc)
	}
	return query, args
}

func direction(desc bool) string {
	if desc {
		return " DESC"
	}
	return " ASC"
}

// volatile reports whether runs of jobs change what f selects, or its order.
func (f jobFilter) volatile() bool {
	return f.Status != "" || strings.Contains(jobOrder[f.Sort], "s.")
}

// anyName is the condition that the name of job j matches a pattern in the parameter, JSON of a list or null: any.
// Neither names nor patterns, after jobGlob, have a character that GLOB knows but the star.
func anyName(param string) string {
	return "(" + param + " = 'null' OR EXISTS (SELECT * FROM json_each(" + param + ") WHERE j.name GLOB value))"
}

// jobs returns rows [start, end) of the jobs that f selects, as JSON that nobody changes, and the number of all. f.Sort
// must be in jobOrder. The list reflects every earlier API call; changes by runs to choice and order may show a second
// later, or listAgeMax if the list takes long to make. Rows are current.
func (s *store) jobs(f jobFilter, start, end int) (iter.Seq2[json.RawMessage, error], int, error) {
	ids, total, err := s.jobIDs(f, start, end)
	read := func(ids []int64) ([]json.RawMessage, error) { return s.docs.read(s, ids) }
	return inParts(ids, partJobs, read), total, err
}

// jobIDs returns the ids of those rows. An index has all jobs in the order of their names: after a change a page of
// them need not wait for a new list.
func (s *store) jobIDs(f jobFilter, start, end int) (ids []int64, total int, err error) {
	query, args := f.query()
	if len(args) == 0 && jobOrder[f.Sort] == "j.name" && s.lists.early(listKey(query, args), s.listing.Load()) {
		if total, err = s.clients.countJobs(); err != nil {
			return nil, 0, err
		}
		ids, err = s.clients.ids(query+" LIMIT ? OFFSET ?", max(0, end-start), start)
		return ids, total, err
	}
	ids, err = s.lists.ids(s, f)
	total = len(ids)
	return ids[min(start, total):max(min(start, total), min(end, total))], total, err
}

// inParts yields what read makes of a list, n items at a time: one part is in memory, no connection in use.
func inParts[In, Out any](list []In, n int, read func([]In) ([]Out, error)) iter.Seq2[Out, error] {
	return func(yield func(Out, error) bool) {
		for part := range slices.Chunk(list, n) {
			rows, err := read(part)
			if err != nil {
				yield(*new(Out), err)
				return
			}
			for _, row := range rows {
				if !yield(row, nil) {
					return
				}
			}
		}
	}
}

const (
	listAge    = time.Second      // maximum age of a list that runs of jobs change
	listAgeMax = 10 * time.Second // maximum age of one that takes long to make
	listShare  = 100              // a list that is in constant use takes 1 % of a core to renew
	listIDsMax = 2 << 20          // in all lists, 16 MiB; beyond that they are dropped
	listPages  = 50               // pages read without a list cost as much as making one
	listCost   = 200              // bytes that a list takes beside its ids and its key
)

// jobLists keeps the ids of the jobs that filters select, in order, so that a page costs no more than its rows. Sorting
// 100,000 jobs takes a quarter of a second, and there are too many orders for an index each.
type jobLists struct {
	flight singleflight.Group

	mu      sync.Mutex // guards what follows
	byKey   map[string]*jobList
	size    int    // cost of all of them
	pages   int    // that were read without a list
	pagesAt uint64 // store.listing then
}

// A jobList is immutable except for renewing.
type jobList struct {
	ids      []int64
	listing  uint64 // store.listing before it was made
	changes  uint64 // store.changes before it was made
	made     time.Time
	age      time.Duration // maximum
	renewing bool          // guarded by jobLists.mu
}

func listKey(query string, args []any) string { return fmt.Sprintf("%s %q", query, args) }

// ids returns the ids of the jobs that f selects, in order. Nobody changes them.
func (l *jobLists) ids(s *store, f jobFilter) ([]int64, error) {
	query, args := f.query()
	key := listKey(query, args)
	listing, changes := s.listing.Load(), s.changes.Load()
	if ids, ok := l.lookup(key, listing, changes, f.volatile()); ok {
		return ids, nil
	}
	ids, err, _ := l.flight.Do(fmt.Sprint(listing, key), func() (any, error) {
		made := time.Now()
		ids, err := s.clients.ids(query, args...)
		if err == nil {
			// In the second half of its age one caller renews it, while the others still use it.
			age := min(max(listAge, 2*listShare*time.Since(made)), listAgeMax)
			l.keep(key, &jobList{ids: ids, listing: listing, changes: changes, made: made, age: age})
		}
		return ids, err
	})
	return ids.([]int64), err
}

// early reports whether a page is read without a list, as the first listPages are after a change.
func (l *jobLists) early(key string, listing uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if list := l.byKey[key]; list != nil && list.listing == listing {
		return false
	}
	if l.pagesAt != listing {
		l.pagesAt, l.pages = listing, 0
	}
	l.pages++
	return l.pages <= listPages
}

func (l *jobLists) lookup(key string, listing, changes uint64, volatile bool) ([]int64, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := l.byKey[key]
	if list == nil || list.listing != listing {
		return nil, false
	}
	age := time.Since(list.made)
	if !volatile || list.changes == changes || age < list.age/2 || age < list.age && list.renewing {
		return list.ids, true
	}
	list.renewing = true
	return nil, false
}

func (l *jobLists) keep(key string, list *jobList) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if old := l.byKey[key]; old != nil {
		l.size -= old.cost(key)
	}
	if l.size += list.cost(key); l.size > listIDsMax || l.byKey == nil {
		l.byKey, l.size = map[string]*jobList{}, list.cost(key)
	}
	l.byKey[key] = list
}

// cost is the memory that a list takes under a key, as a number of ids. An empty list costs something too, as clients
// can ask for any number of them.
func (l *jobList) cost(key string) int { return len(l.ids) + (len(key)+listCost)/8 }

const (
	docsBytesMax = 32 << 20 // in jobDocs
	docCost      = 320      // bytes that two map entries, a name, a warning and the allocations take beside the JSON
)

// jobDocs keeps the JSON of jobs as lists show it. To read a page of rows from the tables and to encode them takes
// 0.4 ms; from here it takes a tenth.
//
// After each transaction, and before anybody hears of it, apply drops the jobs that it changed. A reader adds what it
// has read only if nothing was dropped since it began to read, so nothing outdated stays.
type jobDocs struct {
	courier *courier // for warnings; fixed once requests are served

	mu     sync.Mutex
	byID   map[int64]jobDoc // guarded by mu
	byName map[string]int64 // of those; guarded by mu
	size   int              // guarded by mu
	drops  uint64           // guarded by mu
}

type jobDoc struct {
	name    string
	rev     int64
	doc     json.RawMessage
	warning func() string // what of the job has no effect; lists do not ask for it
}

func (d *jobDoc) cost() int { return len(d.doc) + docCost }

// one returns the JSON of the job of that name, or errNoJob.
func (d *jobDocs) one(s *store, name string) (jobDoc, error) {
	d.mu.Lock()
	known, drops := d.byID[d.byName[name]], d.drops
	d.mu.Unlock()
	if known.doc != nil {
		return known, nil
	}
	row, err := s.clients.job(name)
	if err != nil {
		return jobDoc{}, err
	}
	found, err := d.add([]*jobRow{row}, drops)
	return found[row.version.ID], err
}

// read returns the JSON of the jobs that have the given ids, in that order, without those that are deleted.
func (d *jobDocs) read(s *store, ids []int64) ([]json.RawMessage, error) {
	docs, missing := make([]json.RawMessage, len(ids)), []int64(nil)
	d.mu.Lock()
	drops := d.drops
	for i, id := range ids {
		if docs[i] = d.byID[id].doc; docs[i] == nil {
			missing = append(missing, id)
		}
	}
	d.mu.Unlock()
	if len(missing) == 0 {
		return docs, nil
	}
	rows, err := s.clients.jobsByID(missing)
	if err != nil {
		return nil, err
	}
	found, err := d.add(rows, drops)
	for i, id := range ids {
		if docs[i] == nil {
			docs[i] = found[id].doc
		}
	}
	return slices.DeleteFunc(docs, func(doc json.RawMessage) bool { return doc == nil }), err
}

// add returns what was read since drops as JSON, and keeps it if nothing was dropped since.
func (d *jobDocs) add(rows []*jobRow, drops uint64) (map[int64]jobDoc, error) {
	found := make(map[int64]jobDoc, len(rows))
	for _, r := range rows {
		doc, err := json.Marshal(r)
		if err != nil {
			return nil, err
		}
		warning := func() string {
			var j job
			json.Unmarshal(doc, &j) // it was made of one just now
			return j.warning(d.courier)
		}
		found[r.version.ID] = jobDoc{r.Name, r.version.Rev, doc, sync.OnceValue(warning)}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.drops != drops {
		return found, nil
	}
	if d.byID == nil {
		d.byID, d.byName = map[int64]jobDoc{}, map[string]int64{}
	}
	for id, doc := range found {
		d.removeLocked(id)
		d.byID[id], d.byName[doc.name] = doc, id
		d.size += doc.cost()
	}
	for id := range d.byID { // in any order
		if d.size <= docsBytesMax {
			break
		}
		d.removeLocked(id)
	}
	return found, nil
}

// drop forgets the jobs that have changed, or all of them.
func (d *jobDocs) drop(ids []int64, all bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.drops++
	if all {
		d.byID, d.byName, d.size = nil, nil, 0
	}
	for _, id := range ids {
		d.removeLocked(id)
	}
}

func (d *jobDocs) removeLocked(id int64) {
	if doc, ok := d.byID[id]; ok {
		d.size -= doc.cost()
		delete(d.byID, id)
		delete(d.byName, doc.name)
	}
}

// executionRow is an execution as it is stored: its fields down to Params are the columns of the table.
type executionRow struct {
	ID          int64
	JobID       int64
	Group       int64
	slot        int
	Attempt     int
	Node        string
	incarnation uint64
	Cause       string
	Due         int64
	Late        bool
	Started     int64
	Finished    int64
	Outcome     string
	Dropped     int64
	Process     processEnd
	Params      map[string]string // that a run by hand was given, for its retries too

	JobName    string
	OutputSize int    // of all of it
	Reason     []byte // why it failed; the output begins with it
	Output     []byte // no more than was asked for
}

// executionColumns are an executionRow with the last ?1 bytes of the output. || gives text, which ends at a NUL.
const executionColumns = `e.*, j.name,
	coalesce(length(o.reason) + length(o.tail) + length(o.head), 0), coalesce(o.reason, x''),
	CASE WHEN ?1 = 0 OR o.tail IS NULL THEN x'' WHEN ?1 <= length(o.tail) THEN substr(o.tail, -?1)
		ELSE substr(CAST(o.head || o.tail AS BLOB), -?1) END`

const executionTables = ` FROM executions e JOIN jobs j ON j.id = e.job LEFT JOIN outputs o ON o.execution = e.id `

// collectExecutions reads executions and the last outputMax bytes of outputs. Arguments of tail start at ?2.
func (s *reader) collectExecutions(outputMax int, tail string, args ...any) ([]executionRow, error) {
	return s.selectExecutions(executionTables+tail, outputMax, args...)
}

func (s *reader) selectExecutions(from string, outputMax int, args ...any) ([]executionRow, error) {
	query := "SELECT " + executionColumns + from
	list, err := rowsOf[executionRow](s.viewEach, query, append([]any{outputMax}, args...)...)
	for i := range list {
		list[i].cut(outputMax)
	}
	return list, err
}

// withOutputs yields the executions of a list with the last outputMax bytes of their outputs, if they have ended.
func (s *reader) withOutputs(list []executionRow, outputMax int) iter.Seq2[executionRow, error] {
	return inParts(list, max(1, partBytes/(outputMax+1000)), func(part []executionRow) ([]executionRow, error) {
		place := map[int64]int{}
		for i, e := range part {
			if e.Finished != 0 && e.OutputSize > 0 && outputMax > 0 {
				place[e.ID] = i
			}
		}
		if len(place) == 0 {
			return part, nil
		}
		part = slices.Clone(part)
		ids := jsonText(sortedKeys(place))
		full, err := s.collectExecutions(outputMax, "WHERE e.id IN (SELECT value FROM json_each(?2))", ids)
		for _, e := range full {
			part[place[e.ID]] = e
		}
		return part, err
	})
}

// cut joins the reason and the end of what follows it: at most n bytes in all, beginning with a whole character.
func (e *executionRow) cut(n int) {
	rest := e.Output[max(0, len(e.Output)-max(0, n-len(e.Reason))):]
	cut := len(e.Reason)+len(rest) < e.OutputSize
	for i := 0; i < utf8.UTFMax-1 && cut && len(rest) > 0 && !utf8.RuneStart(rest[0]); i++ {
		rest = rest[1:]
	}
	reason := e.Reason[:min(n, len(e.Reason))]
	e.Output = append(slices.Clip(reason), rest...)
}

// executionOrder maps the fields that executions can be sorted by to columns.
var executionOrder = map[string]string{
	"": "e.started", "started_at": "e.started", "finished_at": "e.finished", "id": "e.id", "attempt": "e.attempt",
	"group": "e.grp", "success": "e.outcome = 'success'", "node_name": "e.node", "job_name": "e.job",
	"output": "o.reason || o.head || o.tail",
}

// executions returns rows [start, end) of a job's executions without outputs, and the number of all of them.
func (s *reader) executions(job int64, sort string, desc bool, start, end int) ([]executionRow, int, error) {
	total, err := valueOf[int](s.viewEach, "SELECT count(*) FROM executions WHERE job = ?", job)
	if err != nil || start >= min(end, total) {
		return []executionRow{}, total, err
	}
	order := executionOrder[sort] + direction(desc) + ", e.id" + direction(desc)
	list, err := s.collectExecutions(0, "WHERE e.job = ?2 ORDER BY "+order+" LIMIT ?3 OFFSET ?4", job, end-start, start)
	return list, total, err
}

// lastExecutions returns the newest n executions of jobs by name, without outputs. Unknown names are left out.
func (s *reader) lastExecutions(names []string, n int) (map[string][]executionRow, error) {
	type row struct {
		id   int64
		name string
	}
	jobs, err1 := rowsOf[row](s.viewEach, `SELECT id, name FROM jobs
		WHERE name IN (SELECT value FROM json_each(?)) AND deleted = 0`, jsonText(names))
	lists, ids := map[string][]executionRow{}, []int64{}
	for _, j := range jobs {
		lists[j.name], ids = nil, append(ids, j.id)
	}
	list, err2 := rowsOf[executionRow](s.viewEach, `SELECT e.*, j.name
		FROM json_each(?1) v JOIN jobs j ON j.id = v.value JOIN executions e ON e.job = j.id AND e.id >= coalesce(
			(SELECT id FROM executions WHERE job = j.id ORDER BY id DESC LIMIT 1 OFFSET ?2), 0) ORDER BY e.id DESC`,
		jsonText(ids), n-1)
	for _, e := range list {
		lists[e.JobName] = append(lists[e.JobName], e)
	}
	return lists, cmp.Or(err1, err2)
}

const (
	recentMax     = 5_000       // executions in a list over all jobs
	recentScanMax = 20_000      // newest ones of the range, or of its failures, that are looked at for it
	startSlack    = time.Minute // by which times may be out of the order of the ids
)

// An executionFilter chooses executions of all jobs that started in [from, to); an empty field means any.
type executionFilter struct {
	from, to         int64
	outcome          string // "bad": any end but success
	job, node, owner string
	globs            []string // of names of jobs; nil: all
	limit            int
}

// recentExecutions returns what f selects, newest first and without outputs. Ids rise with time: no index is needed.
func (s *reader) recentExecutions(f executionFilter) ([]executionRow, error) {
	low, high, err := s.idsOf(f.from, f.to)
	if err != nil {
		return nil, err
	}
	table, cond := "executions e", "1"
	switch f.outcome {
	case "":
	case outcomeSuccess:
		cond = "e.outcome = 'success'"
	default:
		table, cond = "executions e INDEXED BY executions_bad", "e.outcome NOT IN ('', 'success')"
	}
	cond += " AND " + jobAmong
	if f.job != "" {
		cond += " AND e.job = (SELECT id FROM jobs WHERE name = ?10 AND deleted = 0)"
	}
	// CROSS makes SQLite look up jobs and outputs of the rows of the answer only.
	return s.selectExecutions(` FROM `+table+` CROSS JOIN jobs j ON j.id = e.job
			LEFT JOIN outputs o ON o.execution = e.id
		WHERE `+cond+` AND e.id < ?3 AND e.id >= iif(?7 IN ('', 'bad') AND ?11 || ?12 = '', ?2, max(?2, coalesce(
			(SELECT id FROM `+table+` WHERE `+cond+` AND id < ?3 ORDER BY id DESC LIMIT 1 OFFSET ?4), 0)))
		AND e.started >= ?5 AND e.started < ?6 AND (?7 IN ('', 'bad') OR e.outcome = ?7) AND j.deleted = 0
		AND ?11 IN ('', e.node) AND ?12 IN ('', j.owner) ORDER BY e.id DESC LIMIT ?8`,
		0, low, high, recentScanMax, f.from, f.to, f.outcome, f.limit, jsonText(f.globs), f.job, f.node, f.owner)
}

// A failingJob says how often runs of a job ended without success in a range of time.
type failingJob struct {
	name    string
	count   int64
	since   int64 // end of the first of them after the last success, of the first of all if the job has recovered
	last    int64 // id of the last one
	failing bool  // the last run that succeeded or failed has failed
	success int64 // when the job last succeeded
}

// failingJobs returns the jobs with runs that started in [from, to) and ended without success, at most limit: those
// that still fail first, then the last to fail. The newest recentScanMax such runs are counted.
func (s *reader) failingJobs(from, to int64, globs []string, limit int) ([]failingJob, error) {
	low, high, err := s.idsOf(from, to)
	if err != nil {
		return nil, err
	}
	return rowsOf[failingJob](s.viewEach, `SELECT j.name, count(*),
			coalesce(min(iif(e.finished > t.last_success, e.finished, NULL)), min(e.finished)), max(e.id),
			t.broken, t.last_success
		FROM (SELECT e.* FROM executions e INDEXED BY executions_bad
			WHERE e.outcome NOT IN ('', 'success') AND e.id >= ?1 AND e.id < ?2 AND `+jobAmong+`
			ORDER BY e.id DESC LIMIT ?3) e
		CROSS JOIN jobs j ON j.id = e.job JOIN job_state t ON t.job = j.id
		WHERE e.started >= ?4 AND e.started < ?5 AND j.deleted = 0
		GROUP BY j.id ORDER BY t.broken DESC, max(e.id) DESC LIMIT ?6`,
		low, high, recentScanMax, from, to, limit, "", "", jsonText(globs))
}

// jobAmong is true of an execution e whose job globs match, as the JSON ?9.
var jobAmong = "(?9 = 'null' OR e.job IN (SELECT id FROM jobs j WHERE " + anyName("?9") + "))"

// laneMark counts executions of a job that started in the same part of a range of time.
type laneMark struct {
	job                            string
	from, to                       int64 // the first start and the last end, 0 while one runs
	count, failed, killed, running int64
}

// lanes returns what ran in each span of width nanoseconds of [from, to), of the jobs with the most failures and then
// the most executions, at most limit. total counts what started in that time, of the newest recentScanMax.
func (s *reader) lanes(from, to, width int64, globs []string, limit int) (list []laneMark, total laneTotal, err error) {
	low, high, err := s.idsOf(from, to)
	if err != nil {
		return nil, total, err
	}
	recent := `WITH recent AS MATERIALIZED (SELECT e.job, e.started, e.finished, e.outcome,
			e.outcome NOT IN ('', 'success', 'killed') AS failed
		FROM executions e CROSS JOIN jobs j ON j.id = e.job
		WHERE e.id >= ?1 AND e.id < ?2 AND e.started >= ?3 AND e.started < ?4 AND j.deleted = 0 AND ` + jobAmong + `
		ORDER BY e.id DESC LIMIT ?5)`
	args := []any{low, high, from, to, recentScanMax, limit, width, "", jsonText(globs)}
	err = s.view(recent+` SELECT count(*), coalesce(sum(failed), 0), count(DISTINCT job),
		iif(count(*) < ?5, ?3, min(started)) FROM recent`, args, &total.runs, &total.failed, &total.jobs, &total.since)
	if err != nil {
		return nil, total, err
	}
	list, err = rowsOf[laneMark](s.viewEach, recent+`, top AS (SELECT job, sum(failed) AS bad, count(*) AS n
			FROM recent GROUP BY job ORDER BY bad DESC, n DESC, job LIMIT ?6)
		SELECT j.name, min(started), iif(min(finished) = 0, 0, max(finished)), count(*),
			sum(failed), sum(outcome = 'killed'), sum(outcome = '')
		FROM top CROSS JOIN recent USING (job) JOIN jobs j ON j.id = top.job
		GROUP BY top.job, (started - ?3) / ?7 ORDER BY bad DESC, n DESC, top.job, min(started)`, args...)
	return list, total, err
}

// laneTotal counts executions, failures and jobs since a time, which is later than from if there were too many.
type laneTotal struct{ runs, failed, jobs, since int64 }

// idsOf returns a range of ids that has all executions that started in [from, to), and perhaps a few others.
func (s *reader) idsOf(from, to int64) (low, high int64, err error) {
	const slack = int64(startSlack)
	low, err1 := s.firstFrom(max(from, 0) - slack)
	high, err2 := s.firstFrom(min(to, math.MaxInt64-slack) + slack)
	return low, high, cmp.Or(err1, err2)
}

// firstFrom returns the first id from which executions started at t or later, by a binary search: ids rise with time.
func (s *reader) firstFrom(t int64) (int64, error) {
	return valueOf[int64](s.viewEach, `WITH RECURSIVE search(before, step) AS (SELECT 0, 1 << 52
		UNION ALL SELECT before + iif(coalesce((SELECT started FROM executions WHERE id <= before + step
			ORDER BY id DESC LIMIT 1), 0) < ?, step, 0), step / 2 FROM search WHERE step > 0)
		SELECT max(before) + 1 FROM search`, t)
}

// dueJobs calls fn for the jobs whose schedule fires next before a time, the earliest first, at most limit.
func (s *reader) dueJobs(before int64, globs []string, limit int, fn func(j job, next int64)) error {
	return s.viewEach(`SELECT j.doc, s.next FROM job_state s CROSS JOIN jobs j ON j.id = s.job
		WHERE s.next > ?1 AND s.next < ?2 AND s.fires AND `+anyName("?3")+` ORDER BY s.next, s.job LIMIT ?4`,
		[]any{int64(never), before, jsonText(globs), limit}, func(scan scanner) error {
			var j job
			var next int64
			err := scan(jsonColumn{&j}, &next)
			fn(j, next)
			return err
		})
}

// dueCount returns how many jobs fall due before a time.
func (s *reader) dueCount(before int64, globs []string) (int64, error) {
	return valueOf[int64](s.viewEach, `SELECT count(*) FROM job_state s WHERE s.next > ?1 AND s.next < ?2 AND s.fires
		AND (?3 = 'null' OR s.job IN (SELECT id FROM jobs j WHERE `+anyName("?3")+`))`,
		int64(never), before, jsonText(globs))
}

// eventsOf returns marks as events, in their order and each once. Marks of rows that are gone yield none.
func (s *store) eventsOf(marks []mark) ([]event, error) {
	ids := make([]int64, len(marks))
	for i, m := range marks {
		ids[i] = m.row
	}
	type row struct { // a job, or an execution
		id                 int64
		job, node, outcome string
		attempt            int
		last               bool
	}
	list, err := rowsOf[row](s.clients.viewEach, `SELECT id, name, '', '', 0, 0
			FROM jobs WHERE id IN (SELECT value FROM json_each(?1))
		UNION ALL SELECT e.id, j.name, e.node, e.outcome, e.attempt, e.finished <> 0
			AND NOT EXISTS (SELECT * FROM pending WHERE grp = e.grp AND grp <> 0 AND slot = e.slot)
			AND NOT EXISTS (SELECT * FROM executions
				WHERE grp = e.grp AND grp <> id AND slot = e.slot AND attempt > e.attempt)
			FROM executions e JOIN jobs j ON j.id = e.job WHERE e.id IN (SELECT value FROM json_each(?1))`,
		jsonText(ids))
	rows := map[int64]event{}
	for _, r := range list {
		e := event{Job: r.job, Outcome: r.outcome, Attempt: r.attempt, Last: r.last}
		if r.node != "" {
			e.Execution = executionName(r.id, r.node)
		}
		rows[r.id] = e
	}
	var events []event
	seen := map[event]bool{}
	for _, m := range marks {
		e := rows[m.row]
		switch e.Type = m.what; m.what {
		case eventStarted:
			e.Outcome, e.Last = "", false
		case eventPaused:
			paused := s.shown.Load().paused
			events = append(events, event{Type: eventPaused, Paused: &paused})
			continue
		}
		if e.Job != "" && !seen[e] {
			seen[e] = true
			events = append(events, e)
		}
	}
	return events, err
}

const (
	summaryAge     = time.Second
	summaryTickMax = 20_000          // newest skipped and missed ticks, among which those of today are counted
	unrunMax       = 6               // of them that are shown
	delayRuns      = 500             // newest executions that are looked at for delays,
	delayAge       = 5 * time.Minute // if their ticks fell due within this time
)

// A summary counts jobs; Running are executions, and the fields that begin with Day are of the UTC day.
type summary struct {
	Jobs, Failed, Partly, Never int
	Failing                     int // at least one group has failed since the last that succeeded
	Running, Disabled           int
	DayGood, DayBad             int64 // executions that ended
	DaySkipped, DayMissed       int64 // ticks
	Good                        int
	Unrun                       []unrunTick
	Delays                      []time.Duration // from ticks to the starts of their executions, sorted

	made time.Time
}

// An unrunTick did not run.
type unrunTick struct {
	Job string
	tickRow
}

// summaries keeps the last summary, for all who look at it.
type summaries struct {
	mu   sync.Mutex
	last *summary // guarded by mu
}

// summary returns statistics of all jobs, at most summaryAge old. Nobody changes it.
func (s *store) summary(now time.Time) (*summary, error) {
	s.sums.mu.Lock()
	defer s.sums.mu.Unlock()
	if last := s.sums.last; last != nil && now.Sub(last.made).Abs() < summaryAge {
		return last, nil
	}
	sum, err := s.sum(now)
	if err == nil {
		s.sums.last = sum
	}
	return sum, err
}

func (s *store) sum(now time.Time) (*summary, error) {
	// SQLite counts a whole table without looking at its rows, so the status that most jobs have is the rest.
	sum, err := valueOf[summary](s.clients.viewEach, `SELECT (SELECT count(*) FROM job_state),
		(SELECT count(*) FROM job_state WHERE status = 'failed'),
		(SELECT count(*) FROM job_state WHERE status = 'partially_failed'),
		(SELECT count(*) FROM job_state WHERE status = ''), (SELECT count(*) FROM job_state WHERE failures > 0),
		(SELECT count(*) FROM executions WHERE finished = 0),
		(SELECT count(*) FROM jobs WHERE disabled AND deleted = 0),
		coalesce((SELECT success FROM stats WHERE day = ?2), 0), coalesce((SELECT failed FROM stats WHERE day = ?2), 0),
		coalesce(sum(iif(outcome = 'skipped', count, 0)), 0), coalesce(sum(iif(outcome = 'missed', count, 0)), 0)
		FROM (SELECT * FROM ticks ORDER BY id DESC LIMIT ?1) WHERE due >= ?2 * 86400000000000`,
		summaryTickMax, now.UnixNano()/nanosPerDay)
	sum.made, sum.Good = now, sum.Jobs-sum.Failed-sum.Partly-sum.Never
	var err2, err3 error
	sum.Unrun, err2 = s.clients.unrun(nil)
	// Neither delays after an outage nor unknown starts count. Clocks differ: nothing starts before it is due.
	sum.Delays, err3 = rowsOf[time.Duration](s.clients.viewEach, `SELECT max(0, started - due) AS delay
		FROM (SELECT * FROM executions ORDER BY id DESC LIMIT ?)
		WHERE cause = 'tick' AND late = 0 AND finished <> 0 AND outcome <> 'missed' AND due > ? ORDER BY delay`,
		delayRuns, now.Add(-delayAge).UnixNano())
	return &sum, cmp.Or(err, err2, err3)
}

// unrun returns the newest ticks that did not run, of the jobs that globs match, of all if these are nil. It looks at
// the newest summaryTickMax of all jobs.
func (s *reader) unrun(globs []string) ([]unrunTick, error) {
	return rowsOf[unrunTick](s.viewEach, `SELECT j.name, t.due, t.until, t.count, t.outcome, t.reason
		FROM (SELECT * FROM ticks ORDER BY id DESC LIMIT ?1) t CROSS JOIN jobs j ON j.id = t.job
		WHERE j.deleted = 0 AND `+anyName("?2")+` ORDER BY t.id DESC LIMIT ?3`,
		summaryTickMax, jsonText(globs), unrunMax)
}

// execution returns one execution with its whole output, or errNoExecution. Its job may be deleted.
func (s *reader) execution(id int64) (executionRow, error) {
	list, err := s.collectExecutions(outputBytesMax, "WHERE e.id = ?2", id)
	return only(list, err, errNoExecution)
}

// unfinishedByID returns those of the executions that have not ended, as unfinishedExecutions does.
func (s *reader) unfinishedByID(ids []int64) ([]executionRow, error) {
	return s.collectExecutions(0, `WHERE e.id IN (SELECT value FROM json_each(?2))
		AND e.finished = 0 ORDER BY e.id`, jsonText(ids))
}

// unfinishedExecutions returns what has not ended, oldest first, without outputs; jobs may be deleted.
func (s *reader) unfinishedExecutions() ([]executionRow, error) {
	return s.collectExecutions(0, "WHERE e.finished = 0 ORDER BY +e.id")
}

// unfinishedOf returns what has not ended of a job, without outputs.
func (s *reader) unfinishedOf(job int64) ([]executionRow, error) {
	return s.collectExecutions(0, "WHERE e.job = ?2 AND e.finished = 0 ORDER BY +e.id", job)
}

// waitingRow is a run that waits for something to be free.
type waitingRow struct {
	job      string
	cause    string
	due      int64 // or when it was asked for
	group    int64 // 0: none of it has started
	waitsFor string
}

// waiting returns what waits for something to be free, in the order in which it was due.
func (s *reader) waiting() ([]waitingRow, error) {
	return rowsOf[waitingRow](s.viewEach, `SELECT name, cause, asked, grp,
			iif(waits_for = 'job ' || job, 'job ' || name, waits_for)
		FROM pending p JOIN jobs j ON j.id = p.job WHERE waits_for <> '' ORDER BY asked, p.id`)
}

// loads returns how many executions the nodes have that have not ended.
func (s *reader) loads() (map[string]int, error) {
	loads := map[string]int{}
	list, err := rowsOf[nodeLoad](s.viewEach, nodeLoads)
	for _, n := range list {
		loads[n.Node] = n.Running
	}
	return loads, err
}

// openExecution returns the oldest unfinished execution of a job, or errNoExecution.
func (s *reader) openExecution(job int64) (executionRow, error) {
	list, err := s.collectExecutions(0, `WHERE e.id =
		(SELECT min(+id) FROM executions WHERE job = ?2 AND finished = 0)`, job)
	return only(list, err, errNoExecution)
}

// request returns what came of a request, if it was accepted before.
func (s *store) request(id string) (r applied, ok bool, err error) {
	err = s.view(requestQuery, []any{id}, &r.First, &r.Answer, &r.Refused)
	if errors.Is(err, sql.ErrNoRows) {
		return applied{}, false, nil
	}
	return r, err == nil, err
}

// runsOn reports whether a node has an execution that has not ended.
func (s *reader) runsOn(node string) (bool, error) {
	const query = "SELECT EXISTS (SELECT * FROM executions WHERE finished = 0 AND node = ?)"
	return valueOf[bool](s.viewEach, query, node)
}

// groupOpen reports whether something of a group runs, or waits to be tried again.
func (s *reader) groupOpen(group int64) (bool, error) {
	return valueOf[bool](s.viewEach, `SELECT EXISTS (SELECT * FROM pending WHERE grp = ?1 AND grp <> 0)
		OR EXISTS (SELECT * FROM executions WHERE id = ?1 AND finished = 0)
		OR EXISTS (SELECT * FROM executions WHERE grp = ?1 AND grp <> id AND finished = 0)`, group)
}

// groupNodes returns the nodes that a group was given to.
func (s *store) groupNodes(group int64) ([]string, error) {
	return rowsOf[string](s.viewEach, `SELECT node FROM executions WHERE id = ?1
		UNION SELECT node FROM executions WHERE grp = ?1 AND grp <> id`, group)
}

// killed returns those of the executions that were ended by hand.
func (s *reader) killed(ids []int64) ([]int64, error) {
	return s.ids("SELECT id FROM executions WHERE id IN (SELECT value FROM json_each(?)) AND outcome = ?",
		jsonText(ids), outcomeKilled)
}

// due returns the jobs whose next tick is due by now, the earliest first, and the pending rows that are due by now or
// later than far. Of those that wait for something it returns all, with waits, or none.
func (s *store) due(now, far int64, waits bool) (jobs, pending []int64, err error) {
	jobs, err1 := s.ids(`SELECT job FROM job_state
		WHERE next > ? AND next <= ? AND fires ORDER BY next`, int64(never), now)
	// With OR it would scan the index.
	pending, err2 := s.ids(`SELECT id FROM pending WHERE waits_for = '' AND due <= ?1
		UNION ALL SELECT id FROM pending WHERE waits_for = '' AND due > ?2`, now, far)
	waiting, err3 := s.ids("SELECT id FROM pending WHERE waits_for <> '' AND ? ORDER BY asked, id", waits)
	return jobs, append(pending, waiting...), cmp.Or(err1, err2, err3)
}

// nextDue returns when the first job or pending row falls due after a time, or the latest time.
func (s *store) nextDue(after int64) (int64, error) {
	return valueOf[int64](s.viewEach, `SELECT min(
		coalesce((SELECT min(next) FROM job_state WHERE next > ?1 AND fires), ?2),
		coalesce((SELECT min(due) FROM pending WHERE waits_for = '' AND due > ?1), ?2))`, after, int64(math.MaxInt64))
}

// startable returns the id before which all executions have ended, or were decided before a time.
func (s *reader) startable(since int64) (int64, error) {
	return valueOf[int64](s.viewEach, `SELECT coalesce(
		(SELECT id FROM executions WHERE finished = 0 AND started >= ? ORDER BY id LIMIT 1),
		(SELECT max(id) + 1 FROM executions), 0)`, since)
}

// nodesSeen returns the nodes on record, by name. They have no incarnation.
func (s *store) nodesSeen() ([]node, error) {
	return rowsOf[node](s.viewEach, "SELECT name, 0, tags FROM nodes WHERE failed = 0 ORDER BY name")
}

// firedAfter returns ids of jobs, in order and above a given one, whose last decided tick is after a time: as many as
// fit in a command.
func (s *reader) firedAfter(t, above int64) ([]int64, error) {
	return s.ids("SELECT job FROM job_state WHERE fired > ? AND job > ? ORDER BY job LIMIT ?", t, above, ticksMax)
}

// pendingRow is what must follow from something that ended. Its fields are the columns of the table.
type pendingRow struct {
	ID      int64
	Cause   string
	JobID   int64
	Group   int64
	slot    int
	Attempt int
	Node    string
	Due     int64 // not before
	Asked   int64

	Late     bool
	Params   map[string]string
	Forced   bool // it starts also if its job is disabled or held
	WaitsFor string
}

// pendingByID returns those of the given pending rows that are still there.
func (s *store) pendingByID(ids []int64) ([]pendingRow, error) {
	return rowsOf[pendingRow](s.viewEach, `SELECT * FROM pending
		WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id`, jsonText(ids))
}

// noticeRow is what a receiver has not yet got. Its fields are the columns of the table.
type noticeRow struct {
	ID       int64
	Event    string
	JobID    int64
	Receiver string
	Made     int64
	Doc      string
}

// notices returns the oldest notices after an id, at most limit.
func (s *store) notices(after int64, limit int) ([]noticeRow, error) {
	return rowsOf[noticeRow](s.viewEach, "SELECT * FROM notices WHERE id > ? ORDER BY id LIMIT ?", after, limit)
}

func (s *store) noticeIDs() ([]int64, error) { return s.ids("SELECT id FROM notices ORDER BY id") }

// A watchedRow is a job that may be overdue, with one of its runs that may be.
type watchedRow struct {
	job                          int64
	name, maxRuntime, maxSilence string
	disabled                     bool
	heard                        int64
	id                           int64 // of an unfinished execution without a notice that it is overdue; 0: none
	node                         string
	started                      int64
}

func (s *store) watched() ([]watchedRow, error) {
	return rowsOf[watchedRow](s.viewEach, `SELECT j.id, j.name, j.max_runtime, j.max_silence, j.disabled, s.heard,
		coalesce(e.id, 0), coalesce(e.node, ''), coalesce(e.started, 0) FROM jobs j INDEXED BY jobs_watched
		JOIN job_state s ON s.job = j.id
		LEFT JOIN executions e ON e.job = j.id AND e.finished = 0 AND e.id > s.overdue AND j.max_runtime <> ''
		WHERE j.deleted = 0 AND (j.max_runtime <> '' OR j.max_silence <> '') ORDER BY j.id, e.id`)
}

// retention is what trimmable keeps.
type retention struct {
	executions int    // newest ones of each job that does not say how many
	failures   int    // newest ones without success, beyond those
	badFrom    int64  // that ended from this time on
	requests   uint64 // those after this log index
	day        int64  // daily counts from this day on
	audit      int64  // rows of the audit trail from this time on, of which the oldest go
	auditBytes int64  // beyond this size
}

// trimmable returns one command's worth of what need not be kept, and stops reading when it has found that much; with
// whole, which reads a whole table, also ticks beyond the newest ticksKept of a job.
func (s *store) trimmable(keep retention, whole bool) (t trimming, err error) {
	// Executions that go, with outputs of up to 256 kB each, are counted in rows.
	type surplus struct{ id, n, upto, spare int64 }
	var rows int64
	// sized calls fn for as many rows as one command may drop, and for one at least.
	sized := func(query string, args []any, fn func(surplus)) {
		if err != nil {
			return
		}
		err = s.viewEach(query, args, func(scan scanner) error {
			var c surplus
			if err := scan(&c.id, &c.n, &c.upto, &c.spare); err != nil {
				return err
			}
			if rows += c.n; rows > sliceRows && c.n < rows {
				return errEnough
			}
			fn(c)
			return nil
		})
	}
	view := func(query string, args []any, dest ...any) {
		if err == nil {
			err = s.view(query, args, dest...)
		}
	}
	const ended = `executions
		WHERE job = s.job AND id NOT IN (SELECT id FROM executions WHERE job = s.job AND finished = 0)`
	// Few large deletions cost less than many small ones. To propose to drop open groups would never end.
	sized(`WITH crowded AS (
			SELECT * FROM (SELECT job, kept - spared AS n, ?1 AS keep FROM job_state
					WHERE job NOT IN (SELECT id FROM jobs WHERE keep <> 0)
				UNION ALL SELECT job, kept - spared, keep FROM jobs j JOIN job_state ON job = j.id
					WHERE keep <> 0 AND deleted = 0)
			WHERE n >= keep + max(10, keep / 10)),
		cut AS (SELECT *, iif(keep = ?1, (SELECT id FROM `+ended+` ORDER BY id DESC LIMIT 1 OFFSET ?1),
			(SELECT id FROM (SELECT id, row_number() OVER (ORDER BY id DESC) AS place FROM `+ended+`)
				WHERE place > keep LIMIT 1)) AS upto FROM crowded s)
		SELECT job, n - keep, upto, spare FROM (SELECT *, coalesce(
			(SELECT min(id) FROM (SELECT id FROM executions INDEXED BY executions_job_bad
				WHERE job = t.job AND id <= t.upto AND outcome NOT IN ('', 'success') AND finished >= ?3
				ORDER BY id DESC LIMIT ?2)), 0) AS spare FROM cut t) t
		WHERE EXISTS (SELECT * FROM executions e WHERE e.job = t.job AND e.id <= t.upto AND +finished <> 0
			AND (spare = 0 OR e.id < spare OR outcome = 'success') AND grp NOT IN `+openGroups("t.job")+`)`,
		[]any{keep.executions, keep.failures, keep.badFrom},
		func(c surplus) { t.Executions = append(t.Executions, cut{c.id, c.upto, c.spare}) })
	if whole && err == nil {
		t.Ticks, err = rowsOf[cut](s.viewEach, `SELECT job, (SELECT id FROM ticks u WHERE u.job = t.job
			ORDER BY id DESC LIMIT 1 OFFSET ?1) FROM ticks t GROUP BY job HAVING count(*) > ?2 LIMIT 10`,
			ticksKept, ticksKept+ticksKept/10)
	}
	// A trail that is too large loses a sixteenth, more than the row that says so adds.
	view(`SELECT coalesce(max(id), 0), coalesce(max(iif(at >= ?2, at, 0)), 0)
		FROM (SELECT id, at, total, min(total) OVER () AS first,
				(SELECT total FROM audit ORDER BY id DESC LIMIT 1) AS last
			FROM (SELECT id, at, total FROM audit ORDER BY id LIMIT ?1))
		WHERE (at < ?2 OR last - first > ?3 AND total <= last - ?3 / 16 * 15) AND total <= first + ?4`,
		[]any{sliceRows, keep.audit, keep.auditBytes, auditSliceBytes}, &t.Audit, &t.auditUpto)
	// A deleted job stays while something of it runs, so that this can end.
	sized(`SELECT id, (SELECT count(*) FROM (SELECT * FROM executions WHERE job = j.id LIMIT ?)), 0 FROM jobs j
		WHERE deleted <> 0 AND NOT EXISTS (SELECT * FROM executions WHERE job = j.id AND finished = 0)
		ORDER BY id LIMIT 10`, []any{sliceRows}, func(c surplus) { t.Jobs = append(t.Jobs, c.id) })
	view("SELECT coalesce(max(idx), 0) FROM (SELECT idx FROM requests WHERE idx <= ? ORDER BY idx LIMIT ?)",
		[]any{int64(keep.requests), sliceRows}, &t.Requests)
	view(`SELECT iif(EXISTS (SELECT * FROM stats WHERE day < ?1) OR EXISTS (SELECT * FROM tick_days WHERE day < ?1),
		?1, 0)`, []any{keep.day}, &t.Day)
	return t, err
}

// stagedRestore returns the oldest restore of which something is staged, 0 if there is none.
func (s *store) stagedRestore() (int64, error) {
	return valueOf[int64](s.viewEach, "SELECT coalesce(min(restore), 0) FROM staged")
}

// A stagedTick is a staged job, and the last decided tick of the job that it replaces.
type stagedTick struct {
	ID    int64
	Job   job
	Fired int64
}

// stagedDue returns staged jobs after an id whose next tick is not after now, nor after the last decided tick of the
// job that they replace, as when the clock was set back.
func (s *store) stagedDue(restore, after, now int64) ([]stagedTick, error) {
	return rowsOf[stagedTick](s.viewEach, `SELECT st.id, st.doc, coalesce(s.fired, 0)
		FROM staged st LEFT JOIN jobs j ON j.name = st.name AND j.deleted = 0 LEFT JOIN job_state s ON s.job = j.id
		WHERE +st.restore = ?1 AND st.id > max(?2, `+firstStaged+` - 1) AND st.armed
			AND st.next BETWEEN -9223372036854775807 AND max(?3, coalesce(s.fired, 0)) ORDER BY st.id LIMIT ?4`,
		restore, after, now, ticksMax)
}

// stagedNames returns the name of each job of a restore, in the order of its file.
func (s *reader) stagedNames(restore int64) ([]string, error) {
	return rowsOf[string](s.viewEach,
		"SELECT name FROM staged WHERE id >= "+firstStaged+" AND +restore = ?1 ORDER BY id", restore)
}

// A tickRow is the outcome of one tick, or of a range of missed ones.
type tickRow struct {
	Due     int64
	Until   int64 // last of a range, else Due
	Count   int64
	Outcome string // ran, late, skipped or missed
	Reason  string
	group   int64
	Started []string // names of the executions of one that ran
}

// A tickCount counts the ticks of a job by outcome, of one UTC day if Day says so.
type tickCount struct {
	Day                        int64 // since 1970
	Ran, Late, Skipped, Missed int64
}

// tickTable has the ticks of job ?1 due in [?2, ?3) that are kept one by one, with the columns of a tickRow.
const tickTable = `(SELECT due, until, count, outcome, reason, 0 AS grp
		FROM ticks WHERE job = ?1 AND cause = 'tick' AND until >= ?2 AND due < ?3
	UNION ALL SELECT due, due, 1, ` + ranSQL + `, iif(e.outcome = 'missed', coalesce(
			(SELECT CAST(trim(reason, char(10)) AS TEXT) FROM outputs WHERE execution = e.id), ''), ''), id
		FROM executions e WHERE job = ?1 AND cause = 'tick' AND id = grp AND due >= ?2 AND due < ?3)`

// ticks returns rows [start, end) of a job's ticks due in [from, to), newest first, and how many there are.
func (s *reader) ticks(job, from, to int64, start, end int) (list []tickRow, total int, err error) {
	total, err1 := valueOf[int](s.viewEach, "SELECT count(*) FROM "+tickTable, job, from, to)
	list, err2 := rowsOf[tickRow](s.viewEach, "SELECT * FROM "+tickTable+" ORDER BY due DESC LIMIT ?4 OFFSET ?5",
		job, from, to, end-start, start)
	place := map[int64]int{} // of a group in list
	for i, t := range list {
		place[t.group] = i
	}
	runs, err3 := rowsOf[executionRow](s.viewEach, `SELECT * FROM executions
		WHERE job = ? AND grp IN (SELECT value FROM json_each(?)) ORDER BY id`, job, jsonText(sortedKeys(place)))
	for _, e := range runs {
		t := &list[place[e.Group]]
		t.Started = append(t.Started, executionName(e.ID, e.Node))
	}
	return list, total, cmp.Or(err1, err2, err3)
}

// tickCounts returns how many ticks of a job fell due in [from, to): those kept one by one, and those of older days
// that the range touches, day by day, newest first. A day may have some of both.
func (s *reader) tickCounts(job, from, to int64) (single tickCount, days []tickCount, err error) {
	single, err1 := valueOf[tickCount](s.viewEach, `SELECT 0, coalesce(sum(iif(outcome = 'ran', count, 0)), 0),
		coalesce(sum(iif(outcome = 'late', count, 0)), 0), coalesce(sum(iif(outcome = 'skipped', count, 0)), 0),
		coalesce(sum(iif(outcome = 'missed', count, 0)), 0) FROM `+tickTable, job, from, to)
	days, err2 := rowsOf[tickCount](s.viewEach, `SELECT day, ran, late, skipped, missed FROM tick_days
		WHERE job = ? AND day >= ? AND day * 86400000000000 < ? ORDER BY day DESC`, job, from/nanosPerDay, to)
	return single, days, cmp.Or(err1, err2)
}

// policies returns all policies, by name, with the built-in ones.
func (s *reader) policies() ([]policy, error) {
	list, err := rowsOf[policy](s.viewEach, "SELECT * FROM policies")
	list = append(list, builtIn...)
	slices.SortFunc(list, func(a, b policy) int { return cmp.Compare(a.Name, b.Name) })
	return list, err
}

// policy returns the policy of that name, or errNoPolicy.
func (s *reader) policy(name string) (policy, error) {
	if p, ok := builtInPolicy(name); ok {
		return p, nil
	}
	return rowOf[policy](s.viewEach, errNoPolicy, "SELECT * FROM policies WHERE name = ?", name)
}

const managedQuery = `SELECT EXISTS (SELECT * FROM tokens
	WHERE type = 'management' AND (expires = 0 OR expires > ?))`

// tokens returns all tokens in the order of their creation.
func (s *reader) tokens() ([]token, error) {
	return rowsOf[token](s.viewEach, "SELECT * FROM tokens ORDER BY created, accessor")
}

// token returns the token of that accessor, or errNoToken.
func (s *reader) token(accessor string) (token, error) {
	return rowOf[token](s.viewEach, errNoToken, "SELECT * FROM tokens WHERE accessor = ?", accessor)
}

// tokenByHash returns the token whose secret has that hash, or errNoToken.
func (s *reader) tokenByHash(hash []byte) (token, error) {
	return rowOf[token](s.viewEach, errNoToken, "SELECT * FROM tokens WHERE hash = ?", hash)
}

// managed reports whether there is a management token that has not expired.
func (s *store) managed(now int64) (bool, error) { return valueOf[bool](s.viewEach, managedQuery, now) }

// An auditRow says who changed what.
type auditRow struct {
	At            int64
	Actor, Name   string // accessor and name of a token; or as in commands, and ""
	Address       string // of the client
	Action        string
	Job, Object   string
	Before, After string // JSON objects, or null
}

type auditRows = iter.Seq2[auditRow, error]

// An auditFilter selects rows of the audit trail: those in [From, To), with each of the others that is not "".
type auditFilter struct {
	From, To           int64
	Job, Actor, Action string
}

// audit returns rows [start, end) of the audit trail that f selects, newest first, and how many there are, among the
// newest auditScanMax of the time, or of the job if f names one. Others are before the time older, if it is not 0.
func (s *reader) audit(f auditFilter, start, end int) (_ auditRows, total int, older int64, err error) {
	from, args := "FROM audit INDEXED BY audit_at WHERE at >= ?1 AND at < ?2", []any{f.From, f.To, f.Job}
	if f.Job != "" {
		from = "FROM audit INDEXED BY audit_job WHERE at >= ?1 AND at < ?2 AND job = ?3 AND job <> ''"
	}
	err = s.view("SELECT at + 1 "+from+" ORDER BY at DESC LIMIT 1 OFFSET ?4", append(args, auditScanMax), &older)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, 0, 0, err
	}
	args[0] = max(f.From, older)
	from += " AND (?4 = '' OR actor = ?4) AND (?5 = '' OR action = ?5)"
	args = append(args, f.Actor, f.Action)
	total, err1 := valueOf[int](s.viewEach, "SELECT count(*) "+from, args...)
	ids, err2 := s.ids("SELECT id "+from+" ORDER BY at DESC, id DESC LIMIT ?6 OFFSET ?7",
		append(args, max(0, end-start), start)...)
	return inParts(ids, partAudit, func(ids []int64) ([]auditRow, error) {
		return rowsOf[auditRow](s.viewEach, `SELECT at, actor, name, address, action, job, object, before, after
			FROM audit WHERE id IN (SELECT value FROM json_each(?)) ORDER BY at DESC, id DESC`, jsonText(ids))
	}), total, older, cmp.Or(err1, err2)
}

// A dayStats counts the executions that ended on one day.
type dayStats struct {
	Day             int64 // UTC, since 1970
	Success, Failed int64
}

// dailyStats returns the days from first to last, oldest first. A day on which nothing ended has zeros.
func (s *reader) dailyStats(first, last int64) ([]dayStats, error) {
	days := make([]dayStats, last-first+1)
	for i := range days {
		days[i].Day = first + int64(i)
	}
	rows, err := rowsOf[dayStats](s.viewEach, "SELECT * FROM stats WHERE day BETWEEN ? AND ?", first, last)
	for _, d := range rows {
		days[d.Day-first] = d
	}
	return days, err
}

// meta is the row of the cluster table.
type meta struct {
	ClusterID    string
	AppliedIndex uint64
	AppliedTerm  uint64
	Voters       []server
	Timezone     string
	Paused       bool
}

func (s *reader) meta() (meta, error) { return valueOf[meta](s.viewEach, "SELECT * FROM cluster") }

// saved returns what the protocol needs from the disk when it starts.
func (s *store) saved() (disk saved, err error) {
	m, err1 := s.meta()
	disk.Applied, disk.Voters = m.AppliedIndex, []voterSet{{Index: m.AppliedIndex, Voters: m.Voters}}
	err2 := s.view("SELECT term, vote, base_index, base_term, base_index + (SELECT count(*) FROM log) FROM server", nil,
		&disk.State.Term, &disk.State.Vote, &disk.Base.Index, &disk.Base.Term, &disk.Last)
	var err3 error
	disk.Terms, err3 = rowsOf[position](s.viewEach, "SELECT min(idx), term FROM log GROUP BY term ORDER BY term")
	changes, err4 := rowsOf[entry](s.viewEach, "SELECT * FROM log WHERE kind = ? AND idx > ? ORDER BY idx",
		int(entryVoters), int64(m.AppliedIndex))
	err = cmp.Or(err1, err2, err3, err4)
	for _, e := range changes {
		voters, bad := decodeVoters(e.Data)
		disk.Voters, err = append(disk.Voters, voterSet{e.Index, voters}), cmp.Or(err, bad)
	}
	return disk, err
}

// bootstrapList is a list of servers that make a cluster together. Each server accepts one list in its life, durably,
// and the cluster is made when all have: two lists that share a server cannot both become clusters.
type bootstrapList struct {
	Cluster string   // random id
	Voters  []server // in order of names
}

func (f *bootstrapList) names(s server) bool { return f != nil && slices.Contains(f.Voters, s) }

// excludes reports whether a server that has accepted this list cannot belong to a cluster.
func (f *bootstrapList) excludes(cluster string) bool { return f != nil && f.Cluster != cluster }

// ownRow is what a server's database says of the server itself.
type ownRow struct {
	ID       string         // random, made with the data directory
	Cluster  string         // '': none yet
	Accepted *bootstrapList // nil: none yet
	Empty    bool           // there is no state, and never was
}

func (s *store) own() (ownRow, error) {
	return valueOf[ownRow](s.viewEach, `SELECT server.id, server.cluster, accepted,
		applied_index = 0 AND NOT EXISTS (SELECT * FROM log) FROM server, cluster`)
}

// ownName returns this server's name among the voters or in the list that it has accepted; "": in neither.
func (s *store) ownName(own ownRow) (string, error) {
	disk, err := s.saved()
	if err != nil {
		return "", err
	}
	servers := disk.Voters[len(disk.Voters)-1].Voters
	if own.Accepted != nil {
		servers = slices.Concat(servers, own.Accepted.Voters)
	}
	for _, v := range servers {
		if v.ID == own.ID {
			return v.Name, nil
		}
	}
	return "", nil
}

// forceNewCluster makes this server the only voter of a new cluster. Its whole log counts as committed: what lost
// servers acknowledged and it never got is lost, and what was never acknowledged may be done.
func (s *store) forceNewCluster(cluster string) error {
	own, err1 := s.own()
	disk, err2 := s.saved()
	if err := cmp.Or(err1, err2); err != nil {
		return err
	}
	var self []server
	for _, set := range disk.Voters {
		for _, v := range set.Voters {
			if v.ID == own.ID {
				self = []server{v}
			}
		}
	}
	if own.Cluster == "" || self == nil {
		return errNotVoter
	}
	for s.applied.Load() < disk.Last {
		if results, err := s.write(nil, nil, disk.Last); err != nil || len(results) == 0 {
			return cmp.Or(err, errNewer)
		}
	}
	c := command{Actor: actorScheduler, Now: time.Now().UnixNano(), Found: &foundation{ID: cluster}}
	found, err := c.encode()
	if err != nil {
		return err
	}
	term, base := disk.State.Term+1, disk.Last+lifeGap
	return s.writeMembership(membership{Cluster: cluster, Base: base, State: &hardState{Term: term}, Entries: []entry{
		{Index: base + 1, Term: term, Kind: entryVoters, Data: encodeVoters(self)},
		{Index: base + 2, Term: term, Kind: entryCommand, Data: found},
	}})
}

// A membership is a step of a server on its way into a cluster, at most once in the life of a data directory.
type membership struct {
	Accept  *bootstrapList // nil: as before
	Cluster string         // "": as before
	Base    uint64         // 0: as before; else the log, which is applied, begins anew after this index
	State   *hardState
	Entries []entry
}

// writeMembership writes a membership. When it returns nil that survives a power cut.
func (s *store) writeMembership(e membership) error {
	return s.update("FULL", func() error {
		err := s.exec(`UPDATE server SET accepted = coalesce(nullif(?, 'null'), accepted),
			cluster = coalesce(nullif(?, ''), cluster)`, jsonText(e.Accept), e.Cluster)
		if e.Base != 0 {
			at := position{Index: e.Base}
			const query = "UPDATE cluster SET applied_index = ? RETURNING applied_term"
			err = cmp.Or(err, s.get(query, []any{e.Base}, &at.Term))
			err = cmp.Or(err, s.beginLog(at))
		}
		return cmp.Or(err, s.writeLog(e.State, e.Entries))
	})
}

// snapshot writes a consistent copy of the replicated state to a new file, which appears under its name when it is
// whole. It is a backup: a server started on it has a node id and a cluster of its own.
func (s *store) snapshot(ctx context.Context, path string) error {
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot write a snapshot: %s exists", path)
	}
	part := path + ".part" // at first with what makes this server the one that it is
	err := inOrder(func() error { return removeFile(part) },
		func() error { return os.WriteFile(part, nil, 0o600) },               // SQLite would let others read it
		func() error { return execFile(ctx, s.path, "VACUUM INTO ?", part) }, // a reader must not write any file
		func() error { return execFile(ctx, part, "DELETE FROM log; DELETE FROM server; VACUUM") })
	if err != nil {
		return fmt.Errorf("cannot write a snapshot: %w", err)
	}
	return os.Rename(part, path)
}

const snapshotPattern = "snapshot-*" // files in the data directory that are being sent or received

// snapshotFile returns a copy of the state, which the caller closes and which has no name, and where it ends.
func (s *store) snapshotFile(ctx context.Context) (file *os.File, snap snapshot, err error) {
	path := filepath.Join(filepath.Dir(s.path), strings.TrimSuffix(snapshotPattern, "*")+rand.Text())
	defer func() {
		err = errors.Join(err, removeFile(path), removeFile(path+".part"))
	}()
	if err = s.snapshot(ctx, path); err == nil {
		snap, err = readSnapshot(path)
	}
	if err == nil {
		file, err = os.Open(path)
	}
	return file, snap, err
}

// removeSnapshots removes the copies that a former process left in dir.
func removeSnapshots(dir string) error {
	paths, err := filepath.Glob(filepath.Join(dir, snapshotPattern))
	for _, path := range paths {
		err = errors.Join(err, removeFile(path))
	}
	return err
}

// execFile runs statements on a database file over a connection of its own.
func execFile(ctx context.Context, path, query string, args ...any) error {
	db, err := sql.Open("sqlite", dsn(path))
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, query, args...)
	return errors.Join(err, db.Close())
}

// readSnapshot returns where the state in a snapshot ends, and its voters, or why install could not take it.
func readSnapshot(path string) (snap snapshot, err error) {
	var file reader
	if err := file.open(dsn(path, "query_only(1)")); err != nil {
		return snap, err
	}
	defer func() { err = errors.Join(err, file.close()) }()
	version, err := valueOf[int](file.viewEach, "PRAGMA user_version")
	if err != nil {
		return snap, fmt.Errorf("cannot read the snapshot: %w", err)
	}
	if version != schemaVersion {
		return snap, fmt.Errorf("the snapshot has database version %d, this belfry reads version %d; "+
			"run the same version on all servers", version, schemaVersion)
	}
	m, err := file.meta()
	if err != nil {
		return snap, fmt.Errorf("the snapshot is damaged: %w", err)
	}
	return snapshot{position{m.AppliedIndex, m.AppliedTerm}, m.Voters}, checkVoters(m.Voters)
}
