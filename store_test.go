package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"io"
	"iter"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var (
	storeSeed = flag.Uint64("store.seed", 0, "seed of the random logs; 0 takes one from the clock")
	storeLogs = flag.Int("store.logs", 20, "random logs to apply")
)

// newStore opens a store in a temporary directory and checks the whole
// database when the test ends.
func newStore(t testing.TB) *store {
	t.Helper()
	s, err := openStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.check(); err != nil {
			t.Error(err)
		}
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// commit appends commands to the log of a store and applies them.
func commit(t testing.TB, s *store, commands ...*command) []applied {
	t.Helper()
	disk, err := s.saved()
	if err != nil {
		t.Fatal(err)
	}
	last := disk.Last
	var entries []entry
	for i, c := range commands {
		data, err := c.encode()
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, entry{Index: last + 1 + uint64(i), Term: 1, Kind: entryCommand, Data: data})
	}
	results, err := s.write(nil, entries, math.MaxUint64)
	if err != nil {
		t.Fatal(err)
	}
	return append(results, mustApply(t, s)...)
}

var testStart = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixNano()

// fill puts n jobs into the store and returns their versions.
func fill(t testing.TB, s *store, n int) []jobVersion {
	t.Helper()
	var commands []*command
	for i := range n {
		commands = append(commands, &command{Actor: actorAnonymous, Audit: &audited{Action: actionPut, Address: "192.0.2.1"}, Now: testStart, Request: fmt.Sprint("fill ", i), Put: []jobPut{{
			Job:  job{Name: fmt.Sprintf("job-%06d", i), Schedule: "0 0 0 1 1 *", Executor: "http", ExecutorConfig: map[string]string{"method": "GET", "url": "http://127.0.0.1/"}, Metadata: map[string]string{"team": fmt.Sprint("t", i%7)}},
			Next: testStart + int64(i)}}})
	}
	var versions []jobVersion
	for _, r := range commit(t, s, commands...) {
		versions = append(versions, jobVersion{r.Jobs[0], int64(r.Index)})
	}
	return versions
}

// whole reads a list to its end.
func whole[T any](rows iter.Seq2[T, error]) (list []T, err error) {
	for row, err := range rows {
		if err != nil {
			return nil, err
		}
		list = append(list, row)
	}
	return list, nil
}

// listJobs is store.jobs in one piece.
func listJobs(s *store, f jobFilter, start, end int) ([]json.RawMessage, int, error) {
	rows, total, err := s.jobs(f, start, end)
	if err != nil {
		return nil, 0, err
	}
	list, err := whole(rows)
	return list, total, err
}

// listAudit is store.audit in one piece.
func listAudit(s *store, f auditFilter, start, end int) ([]auditRow, int, int64, error) {
	rows, total, older, err := s.audit(f, start, end)
	if err != nil {
		return nil, 0, 0, err
	}
	list, err := whole(rows)
	return list, total, older, err
}

func BenchmarkStore_page(b *testing.B) {
	s := newStore(b)
	fill(b, s, 10_000)
	b.ResetTimer()
	for i := range b.N {
		start := i * 7919 % 9950
		rows, _, err := listJobs(s, jobFilter{}, start, start+50)
		if err != nil || len(rows) != 50 {
			b.Fatal(len(rows), err)
		}
	}
}

// fillExecutions puts executions of each of the jobs into the store that have ended.
func fillExecutions(t testing.TB, s *store, each int) {
	t.Helper()
	err := s.update("NORMAL", func() error {
		for _, query := range []string{
			`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1), e(id, job, at) AS MATERIALIZED (SELECT (i << 40) + j.id, j.id, i * 1000000000 FROM n CROSS JOIN jobs j)
				INSERT INTO executions SELECT id, job, id, 0, 1, 'n1', 7, 'tick', at, 0, at, at + 1, 'success', 0, 0, '', 0, 0, 'null' FROM e`,
			"INSERT INTO outputs (execution, tail, head, reason) SELECT id, zeroblob(100), x'', x'' FROM executions WHERE ?1 > 0 ORDER BY id",
			"UPDATE job_state SET kept = ?1, success_count = ?1",
		} {
			if err := s.exec(query, each); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func BenchmarkStore_trim(b *testing.B) {
	for _, jobs := range []int{100, 10_000} {
		b.Run(fmt.Sprint(jobs, " jobs"), func(b *testing.B) {
			s := mustOpen(b, b.TempDir())
			defer s.close()
			fill(b, s, jobs)
			fillExecutions(b, s, 1_000_000/jobs)
			keep := 1_000_000 / jobs * 10 / 11
			b.ResetTimer()
			for range b.N {
				t, err := s.trimmable(retention{executions: keep, auditBytes: math.MaxInt64}, false)
				if err != nil || t.empty() {
					b.Fatal(t, err)
				}
				commit(b, s, &command{Trim: &t})
			}
		})
	}
}

// BenchmarkStore_pageAfterPut reads a page of 100,000 jobs by name, each time
// after a job was stored.
func BenchmarkStore_pageAfterPut(b *testing.B) {
	s := newStore(b)
	fill(b, s, 100_000)
	var took time.Duration
	for i := range b.N {
		commit(b, s, &command{Actor: actorAnonymous, Now: testStart, Put: []jobPut{{Job: job{Name: fmt.Sprint("new-", i), Schedule: "@manually"}, Next: never}}})
		start := i * 7919 % 99_950
		began := time.Now()
		rows, n, err := listJobs(s, jobFilter{}, start, start+50)
		if took += time.Since(began); err != nil || len(rows) != 50 || n != 100_001+i {
			b.Fatal(len(rows), n, err)
		}
	}
	b.ReportMetric(float64(took.Microseconds())/float64(b.N)/1000, "ms/page")
}

func BenchmarkStore_put(b *testing.B) {
	s := newStore(b)
	fill(b, s, b.N)
}

// BenchmarkStore_run consumes ticks and finishes what they start, 1,000 in a transaction.
func BenchmarkStore_run(b *testing.B) {
	s := newStore(b)
	jobs := fill(b, s, 1_000)
	var consumed []decision
	for i, v := range jobs {
		consumed = append(consumed, decision{Job: v.ID, Rev: v.Rev, Next: testStart + int64(i), Targets: []target{{"n1", 7}}})
	}
	b.ResetTimer()
	for n := 0; n < b.N; n += len(jobs) {
		list := consumed[:min(len(jobs), b.N-n)]
		var finished []report
		for i := range list {
			list[i].Due, list[i].Next = list[i].Next, list[i].Next+int64(time.Second)
		}
		res := commit(b, s, &command{Now: testStart, Consume: list})
		for _, ids := range res[0].Started {
			finished = append(finished, report{result: result{Execution: ids[0], Node: "n1", Incarnation: 7, Started: testStart, Finished: testStart, Outcome: outcomeSuccess}})
		}
		commit(b, s, &command{Now: testStart, Finish: finished})
	}
}

// writeNewerStore makes a database that a later version has written.
func writeNewerStore(t testing.TB, dir string) {
	t.Helper()
	s, err := openStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.exec(fmt.Sprintf("PRAGMA user_version = %d", schemaVersion+1)), s.close()); err != nil {
		t.Fatal(err)
	}
}

// TestStore_SQLite: an older SQLite could damage a database when it began its
// write-ahead log anew.
func TestStore_SQLite(t *testing.T) {
	var major, minor, patch int
	var version string
	if err := newStore(t).view("SELECT sqlite_version()", nil, &version); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(version, "%d.%d.%d", &major, &minor, &patch); err != nil || major*1_000_000+minor*1000+patch < 3_051_003 {
		t.Errorf("SQLite is %s, %v, want 3.51.3 or newer", version, err)
	}
}

// TestStore_UnfinishedPlan: what has not ended is found without a look at what has.
func TestStore_UnfinishedPlan(t *testing.T) {
	s := newStore(t)
	for _, query := range []string{
		"SELECT e.id" + executionTables + " WHERE e.finished = 0 ORDER BY +e.id",
		"SELECT min(+id) FROM executions WHERE job = 1 AND finished = 0",
		"SELECT id FROM jobs WHERE id NOT IN " + openGroups("1"),
		"SELECT count(*) FROM executions WHERE finished = 0",
	} {
		var plan []string
		err := s.viewEach("EXPLAIN QUERY PLAN "+query, nil, func(scan scanner) error {
			var a, b, c int
			var step string
			err := scan(&a, &b, &c, &step)
			plan = append(plan, step)
			return err
		})
		if text := strings.Join(plan, "; "); err != nil || !strings.Contains(text, "executions_unfinished") {
			t.Errorf("%s: %s, %v", query, text, err)
		}
	}
}

// ---- Logs

// reopen closes a store as a crash would, and opens it again.
func reopen(t testing.TB, s *store) *store {
	t.Helper()
	dir := filepath.Dir(s.path)
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	s, err := openStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustOpen(t testing.TB, dir string) *store {
	t.Helper()
	s, err := openStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustDump(t testing.TB, s *store) string {
	t.Helper()
	dump, err := s.dump()
	if err != nil {
		t.Fatal(err)
	}
	return dump
}

// persist only logs.
func (s *store) persist(state *hardState, entries []entry) error {
	_, err := s.write(state, entries, 0)
	return err
}

// applyUpTo applies all that is logged up to index commit.
func (s *store) applyUpTo(commit uint64) (all []applied, err error) {
	for {
		results, err := s.write(nil, nil, commit)
		if err != nil || len(results) == 0 {
			return all, err
		}
		all = append(all, results...)
	}
}

func mustApply(t testing.TB, s *store) []applied {
	t.Helper()
	results, err := s.applyUpTo(math.MaxUint64)
	if err != nil {
		t.Fatal(err)
	}
	return results
}

// withoutCluster is a dump without the table that says which cluster it is: a
// snapshot that was opened as a server belongs to none.
func withoutCluster(dump string) string {
	_, rest, _ := strings.Cut(dump, "\n")
	return rest
}

// randomLog makes commands that fit a store, and some that do not.
type randomLog struct {
	t   testing.TB
	rnd *rand.Rand
	s   *store
	now int64
	n   int
}

func newRandomLog(t testing.TB, s *store, seed uint64) *randomLog {
	return &randomLog{t: t, rnd: rand.New(rand.NewPCG(seed, 0)), s: s, now: testStart}
}

// randomSeed returns the seed of a test, and says how to repeat it.
func randomSeed(t testing.TB) uint64 {
	seed := *storeSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("repeat it with -run '%s$' -store.seed=%d", t.Name(), seed)
	return seed
}

func (l *randomLog) job() *jobRow {
	l.t.Helper()
	rows, n, err := listJobs(l.s, jobFilter{}, 0, 100)
	if err != nil {
		l.t.Fatal(err)
	}
	if n != len(rows) {
		l.t.Fatalf("%d jobs are counted and %d listed: %v", n, len(rows), l.s.check())
	}
	if n == 0 {
		return &jobRow{job: job{Name: "none"}, version: jobVersion{ID: 1, Rev: 1}}
	}
	var shown struct{ Name string }
	if err := json.Unmarshal(rows[l.rnd.IntN(len(rows))], &shown); err != nil {
		l.t.Fatal(err)
	}
	row, err := l.s.job(shown.Name)
	if err != nil {
		l.t.Fatalf("%s is listed, and %v", shown.Name, err)
	}
	return row
}

func (l *randomLog) targets() (list []target) {
	for i := range l.rnd.IntN(4) {
		list = append(list, target{fmt.Sprint("n", i), 7})
	}
	return list
}

func (l *randomLog) next() *command {
	l.now += l.rnd.Int64N(int64(time.Hour))
	l.n++
	c := &command{Actor: actorScheduler, Now: l.now, Listeners: map[string][]string{}}
	for _, e := range slices.Concat(jobEvents, clusterEvents) {
		c.Listeners[e] = pick(l.rnd, nil, []string{receiverNotify}, []string{receiverOwner, receiverNotify})
	}
	if l.rnd.IntN(3) == 0 {
		c.Request, c.Answer = fmt.Sprint("request ", l.rnd.IntN(l.n)), "{}"
	}
	if l.rnd.IntN(2) == 0 {
		c.Actor, c.Audit = pick(l.rnd, actorAnonymous, "policy-0"), &audited{Action: "change", Address: "192.0.2.1"}
	}
	row := l.job()
	switch l.rnd.IntN(18) {
	case 17:
		name := fmt.Sprint("n", l.rnd.IntN(3))
		c.SetRule = &ruleSet{pick(l.rnd, ruleHold, ruleCalendar, ruleDrain), name, &rule{Name: name, Why: "why", Metadata: map[string]string{"b": fmt.Sprint(l.n - l.rnd.IntN(20))}, Since: timeOf(l.now)}}
		if l.rnd.IntN(2) == 0 {
			c.SetRule.Rule = nil
		}
	case 16:
		if c.Delivered = l.told(); l.rnd.IntN(2) == 0 {
			c.Delivered, c.Notice = nil, []occasion{{Job: row.version.ID, Heard: l.heard(row), Notice: notice{Event: eventOverdue}},
				{Notice: notice{Event: eventDisk}}}
			for _, e := range l.unended() {
				c.Notice = append(c.Notice, occasion{Job: e.JobID, Execution: e.ID, Notice: notice{Event: eventOverdue}})
			}
		}
	case 12:
		paused := l.rnd.IntN(2) == 0
		c.SetPaused = &paused
	case 13:
		name := fmt.Sprint("policy-", l.rnd.IntN(3))
		if c.PutPolicy = (&policy{Name: name, Rules: `{"path":{}}`}); l.rnd.IntN(3) == 0 {
			c.PutPolicy, c.DeletePolicy = nil, name
		} else if n := l.rnd.IntN(3); n == 0 {
			c.PutPolicy, c.PutToken = nil, &tokenPut{token{Accessor: name, Hash: []byte(name), Name: name, Type: tokenManagement, Expires: l.now + 1}, l.rnd.IntN(2) == 0}
		} else if n == 1 {
			c.PutPolicy, c.DeleteToken = nil, name
		}
	case 14:
		l.restore(c)
	case 15:
		for _, e := range l.unended() {
			c.Bind = append(c.Bind, binding{e.ID, e.incarnation + uint64(l.rnd.IntN(3)/2), target{"n9", 7}})
		}
	case 0, 1:
		c.Submit = l.rnd.IntN(2) == 0
		for range 1 + l.rnd.IntN(3) {
			c.Put = append(c.Put, l.put())
		}
	case 2:
		v := row.version
		if l.rnd.IntN(4) == 0 {
			v.Rev--
		}
		c.Delete = &v
	case 3:
		c.DeleteExecutions = &row.version
	case 4, 5, 6:
		due := row.next
		for range 1 + l.rnd.IntN(3) {
			d := decision{Job: row.version.ID, Rev: row.version.Rev, Due: due, Next: max(due, l.now) + int64(time.Minute), Targets: l.targets(), Late: l.rnd.IntN(2) == 0}
			if len(d.Targets) == 0 {
				d.Event = pick(l.rnd, "", eventMissed)
				d.Outcome, d.Reason, d.Until, d.Count = pick(l.rnd, outcomeSkipped, outcomeMissed), "why", due+1, 2
			}
			if l.rnd.IntN(10) == 0 {
				d.Next = never
			}
			c.Consume, due = append(c.Consume, d), d.Next
		}
	case 7:
		c.Consume = l.runs(row)
	case 8, 9:
		l.ends(c)
	case 10:
		fired := row.fired
		c.Reset = []reset{{Job: row.version.ID, Rev: row.version.Rev, Fired: fired, Next: l.now + int64(time.Minute), Reason: "a wrong clock"}}
	case 11:
		t, err := l.s.trimmable(retention{3, l.rnd.IntN(4), l.now - 5*int64(time.Hour), uint64(l.rnd.IntN(l.n)), l.now/nanosPerDay - 1, l.now - 10*int64(time.Hour), 20_000}, true)
		if err != nil {
			l.t.Fatal(err)
		}
		c.Trim = &t
	}
	return c
}

func (l *randomLog) heard(row *jobRow) (heard int64) {
	if err := l.s.view("SELECT coalesce((SELECT heard FROM job_state WHERE job = ?), 0)", []any{row.version.ID}, &heard); err != nil {
		l.t.Fatal(err)
	}
	return heard
}

// told takes some notices, and gives up others.
func (l *randomLog) told() *deliveries {
	rows, err := l.s.notices(0, noticesMax)
	if err != nil {
		l.t.Fatal(err)
	}
	t := &deliveries{Taken: []int64{1}}
	for _, row := range rows {
		switch l.rnd.IntN(3) {
		case 0:
			t.Taken = append(t.Taken, row.ID)
		case 1:
			t.Lost = append(t.Lost, row.ID)
		}
	}
	return t
}

func (l *randomLog) put() jobPut {
	name := fmt.Sprint("job-", l.rnd.IntN(8))
	p := jobPut{Next: l.now + l.rnd.Int64N(int64(time.Hour)), Job: job{Name: name, Schedule: "@every 1m", Metadata: map[string]string{"b": fmt.Sprint(l.n), "a": "x"},
		Retries: uint(l.rnd.IntN(3)), Concurrency: pick(l.rnd, concurrencyAllow, concurrencyForbid), Ephemeral: l.rnd.IntN(8) == 0, Disabled: l.rnd.IntN(8) == 0}}
	if p.Job.Keep = l.rnd.IntN(3); l.rnd.IntN(2) == 0 {
		p.Job.OwnerEmail, p.Job.Notify = "a@example.org", []notifyRule{{On: []string{eventEnd, eventFailed}, Webhook: "http://own", Every: l.rnd.IntN(2) == 0}}
	}
	if p.Job.DisableAfter = uint(l.rnd.IntN(3)); l.rnd.IntN(5) == 0 {
		p.Job.ParentJob, p.Job.ParentOn = fmt.Sprint("job-", l.rnd.IntN(8)), pick(l.rnd, "", onSuccess, onFailure, onAny)
	}
	if l.rnd.IntN(4) == 0 {
		p.Job.SkipOn = []string{fmt.Sprint("n", l.rnd.IntN(3))}
	}
	if row, err := l.s.job(name); err == nil {
		p.Base, p.Next = row.version, max(p.Next, row.fired+1)
		p.Keep = l.rnd.IntN(2) == 0 && row.Disabled == p.Job.Disabled && row.ParentJob == p.Job.ParentJob
	}
	if l.rnd.IntN(10) == 0 {
		p.Base.Rev++
	}
	return p
}

func (l *randomLog) runs(row *jobRow) []decision {
	rows, err := l.s.pending()
	if err != nil {
		l.t.Fatal(err)
	}
	list := []decision{{Job: row.version.ID, Rev: row.version.Rev, Targets: l.targets(), Params: map[string]string{"a": "b", "c": "d"}}}
	if len(rows) > 0 {
		list = nil
	}
	for _, p := range rows {
		jobs, err := l.s.jobsByID([]int64{p.JobID})
		if err != nil || len(jobs) == 0 {
			l.t.Fatal(jobs, err)
		}
		d := decision{Pending: p.ID, Job: p.JobID, Rev: jobs[0].version.Rev - int64(l.rnd.IntN(8)/7), Targets: []target{{"n0", 7}}}
		if l.rnd.IntN(3) == 0 {
			d.Targets, d.Outcome, d.Reason = nil, outcomeSkipped, "why"
		}
		if list = append(list, d); l.rnd.IntN(4) == 0 {
			list = append(list, d) // it is decided twice
		}
	}
	return list
}

// restore stages a slice of jobs, moves some that are staged, or makes a
// restore visible.
func (l *randomLog) restore(c *command) {
	staged := map[int64][]int64{} // restore → rows
	err := l.s.viewEach("SELECT restore, id FROM staged ORDER BY id", nil, func(scan scanner) error {
		var restore, id int64
		err := scan(&restore, &id)
		staged[restore] = append(staged[restore], id)
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	st := &staging{}
	for _, restore := range slices.Sorted(maps.Keys(staged)) {
		if l.rnd.IntN(2) == 0 {
			c.Restore = &restoring{Restore: restore, Jobs: len(staged[restore]) + l.rnd.IntN(4)/3}
			if l.rnd.IntN(2) == 0 {
				c.Restore.Prune = map[string]string{"a": "x"}
			}
			return
		}
		st.Restore = restore
		st.Moved = append(st.Moved, stagedJob{ID: staged[restore][0], Next: l.now + int64(time.Hour)})
	}
	for range l.rnd.IntN(4) {
		p := l.put()
		p.Job.Name = pick(l.rnd, p.Job.Name, fmt.Sprint("restored-", l.n))
		st.Jobs = append(st.Jobs, stagedJob{Job: p.Job, Next: p.Next})
	}
	c.Stage = st
}

// unended are the executions that a node may still report.
func (l *randomLog) unended() []executionRow {
	rows, err := l.s.collectExecutions(0, "WHERE e.finished = 0 OR e.outcome = 'lost' ORDER BY e.id")
	if err != nil {
		l.t.Fatal(err)
	}
	return rows
}

func (l *randomLog) ends(c *command) {
	for _, e := range l.unended() {
		switch l.rnd.IntN(4) {
		case 0:
		case 1:
			c.Finish = append(c.Finish, closedAt(l.now, e.ID, 7+uint64(l.rnd.IntN(4)/3), pick(l.rnd, outcomeLost, outcomeInterrupted, outcomeMissed)))
		default:
			c.Finish = append(c.Finish, report{result: result{Execution: e.ID, Node: pick(l.rnd, e.Node, e.Node, e.Node, "other"), Incarnation: 7 + uint64(l.rnd.IntN(4)/3), Started: e.Started, Finished: l.now, Outcome: pick(l.rnd, outcomeSuccess, outcomeFailed, outcomeKilled), Dropped: 3, Output: []byte("out\x00put")}})
		}
	}
}

// TestStore_RandomLog: whatever the log holds, the invariants hold after each
// command, and every server that applies it, from the start, behind a snapshot,
// in one transaction or in many, has the same state.
func TestStore_RandomLog(t *testing.T) {
	seed := randomSeed(t)
	for i := range uint64(*storeLogs) {
		s, other := mustOpen(t, simTempDir(t)), mustOpen(t, simTempDir(t))
		if err := other.exec("PRAGMA reverse_unordered_selects = 1"); err != nil { // no order but one that was asked for holds
			t.Fatal(err)
		}
		l := newRandomLog(t, s, seed+i)
		half := 20 + l.rnd.IntN(60)
		var rest []entry
		var behind *store
		commit(t, s, &command{Now: testStart, Found: &foundation{ID: "cluster", Timezone: "UTC"}})
		for n := range 120 {
			last := commit(t, s, l.next())[0]
			if n%10 == 0 {
				if err := s.check(); err != nil {
					t.Fatalf("seed %d, log entry %d: %v", seed+i, last.Index, err)
				}
			}
			if n == half {
				dir := simTempDir(t)
				if err := s.snapshot(t.Context(), filepath.Join(dir, "belfry.db")); err != nil {
					t.Fatal(err)
				}
				behind = mustOpen(t, dir)
				for _, query := range []string{"UPDATE cluster SET applied_index = applied_index - ?", "UPDATE server SET base_index = base_index - ?"} {
					if err := behind.exec(query, lifeGap); err != nil { // it goes on with the same log
						t.Fatal(err)
					}
				}
				behind = reopen(t, behind)
			}
		}
		log, err := s.entries(1, 1<<40)
		if err != nil {
			t.Fatal(err)
		}
		rest = log[behind.applied.Load():]
		if err := errors.Join(other.persist(nil, log), behind.persist(nil, rest)); err != nil {
			t.Fatal(err)
		}
		mustApply(t, other)
		mustApply(t, behind)
		want := mustDump(t, s)
		if diff := cmp.Diff(want, mustDump(t, other)); diff != "" {
			t.Errorf("seed %d: the same log in one go makes another state (-want +got):\n%s", seed+i, diff)
		}
		if diff := cmp.Diff(withoutCluster(want), withoutCluster(mustDump(t, behind))); diff != "" {
			t.Errorf("seed %d: a snapshot and the rest of the log make another state (-want +got):\n%s", seed+i, diff)
		}
		s = reopen(t, s)
		if diff := cmp.Diff(want, mustDump(t, s)); diff != "" {
			t.Errorf("seed %d: the state is another after a restart (-want +got):\n%s", seed+i, diff)
		}
		for _, s := range []*store{s, other, behind} {
			if err := errors.Join(s.check(), s.close()); err != nil {
				t.Errorf("seed %d: %v", seed+i, err)
			}
		}
	}
}

// TestStore_Snapshot: a snapshot is whole or not there, replaces nothing, and is
// the start of another server in another cluster.
func TestStore_Snapshot(t *testing.T) {
	s := newStore(t)
	commit(t, s, &command{Now: testStart, Found: &foundation{ID: "cluster", Timezone: "Asia/Tokyo"}})
	fill(t, s, 3)
	dir := t.TempDir()
	path := filepath.Join(dir, "belfry.db")
	if err := os.WriteFile(path+".part", []byte("of a snapshot that a crash has ended"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.snapshot(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if err := s.snapshot(t.Context(), path); err == nil {
		t.Error("a snapshot replaced another one")
	}
	if files, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || !cmp.Equal(files, []string{path}) {
		t.Errorf("left behind is %v, %v, want the snapshot alone", files, err)
	}
	copied := mustOpen(t, dir)
	defer copied.close()
	own, err1 := s.own()
	other, err2 := copied.own()
	if err := errors.Join(err1, err2); err != nil || own.ID == other.ID {
		t.Errorf("the copy's node id is %q, %v, want another than %q", other.ID, err, own.ID)
	}
	m, err := copied.meta()
	want := meta{AppliedIndex: 4 + lifeGap, AppliedTerm: 1, Voters: []server{}, Timezone: "Asia/Tokyo"}
	if err != nil || cmp.Diff(m, want) != "" {
		t.Errorf("the copy is %+v, %v, want %+v", m, err, want)
	}
	if diff := cmp.Diff(withoutCluster(mustDump(t, s)), withoutCluster(mustDump(t, copied))); diff != "" {
		t.Errorf("state of the copy (-want +got):\n%s", diff)
	}
	if err := copied.check(); err != nil {
		t.Error(err)
	}
}

// TestStore_Reopen: what is persisted and not applied when the process dies is
// there when it is back, and makes the same state.
func TestStore_Reopen(t *testing.T) {
	whole, torn := newStore(t), mustOpen(t, t.TempDir())
	fill(t, whole, 5)
	log, err := whole.entries(1, 1<<40)
	if err != nil {
		t.Fatal(err)
	}
	if err := torn.persist(&hardState{Term: 3, Vote: "x"}, log[:4]); err != nil {
		t.Fatal(err)
	}
	if _, err := torn.applyUpTo(2); err != nil {
		t.Fatal(err)
	}
	torn = reopen(t, torn)
	defer torn.close()
	disk, err := torn.saved()
	want := saved{State: hardState{Term: 3, Vote: "x"}, Terms: []position{{1, 1}}, Last: 4, Applied: 2}
	if diff := cmp.Diff(want, disk, cmpopts.IgnoreFields(saved{}, "Voters")); diff != "" || err != nil {
		t.Errorf("after a restart the disk holds (-want +got): %v\n%s", err, diff)
	}
	if err := torn.persist(nil, log[4:]); err != nil {
		t.Fatal(err)
	}
	mustApply(t, torn)
	if diff := cmp.Diff(mustDump(t, whole), mustDump(t, torn)); diff != "" {
		t.Errorf("state of a log that was applied in two lives (-want +got):\n%s", diff)
	}
	if err := torn.check(); err != nil {
		t.Error(err)
	}
}

// TestStore_Mode: the files of the database are their user's alone, new ones and
// old ones, in a directory that all may read.
func TestStore_Mode(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s := mustOpen(t, dir)
		files, err := filepath.Glob(filepath.Join(dir, "belfry.db*"))
		if err != nil || len(files) != 4 {
			t.Errorf("the files are %q, %v", files, err)
		}
		for _, file := range files {
			if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
				t.Errorf("%s has mode %v, %v", file, info.Mode(), err)
			}
		}
		backup := filepath.Join(t.TempDir(), "backup")
		if err := s.snapshot(t.Context(), backup); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(backup); err != nil || info.Mode() != 0o600 {
			t.Errorf("a backup has mode %v, %v", info.Mode(), err)
		}
		if err := errors.Join(s.close(), os.Chmod(s.path, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStore_Truncate: entries that another leader replaces were never applied,
// and are not applied after a restart either.
func TestStore_Truncate(t *testing.T) {
	a, b := newStore(t), mustOpen(t, t.TempDir())
	fill(t, a, 3)
	log, err := a.entries(1, 1<<40)
	if err != nil {
		t.Fatal(err)
	}
	wrong := entry{Index: 3, Term: 1, Kind: entryCommand, Data: []byte("of a deposed leader")}
	if err := errors.Join(b.persist(nil, []entry{log[0], log[1], wrong}), b.persist(nil, log[2:])); err != nil {
		t.Fatal(err)
	}
	b = reopen(t, b)
	defer b.close()
	mustApply(t, b)
	if diff := cmp.Diff(mustDump(t, a), mustDump(t, b)); diff != "" {
		t.Errorf("state behind a replaced entry (-want +got):\n%s", diff)
	}
}

// TestStore_WriteFails: a step of the write path that fails, or is done and
// reported failed, leaves a database that opens, is consistent, and holds
// either nothing or all of it.
func TestStore_WriteFails(t *testing.T) {
	big := &command{Now: testStart, Request: "big", Put: []jobPut{{Job: job{Name: "big", Schedule: "@manually", DisplayName: strings.Repeat("x", 300_000)}, Next: never}}}
	data, err := big.encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		fail    func(s *store, e entry) error
		applied uint64
		last    uint64
	}{
		{"PersistNotDone", func(s *store, e entry) error { return full(s, func() error { return s.persist(nil, []entry{e}) }) }, 5, 5},
		{"PersistReportedFailed", func(s *store, e entry) error { return errors.Join(s.persist(nil, []entry{e}), io.ErrUnexpectedEOF) }, 5, 6},
		{"ApplyNotDone", func(s *store, e entry) error {
			if err := s.persist(nil, []entry{e}); err != nil {
				return nil
			}
			return full(s, func() error { _, err := s.applyUpTo(e.Index); return err })
		}, 5, 6},
		{"NeitherDone", func(s *store, e entry) error {
			return full(s, func() error { _, err := s.write(nil, []entry{e}, e.Index); return err })
		}, 5, 5},
		{"BothReportedFailed", func(s *store, e entry) error {
			_, err := s.write(nil, []entry{e}, e.Index)
			return errors.Join(err, io.ErrUnexpectedEOF)
		}, 6, 6},
		{"ApplyReportedFailed", func(s *store, e entry) error {
			_, err := s.applyUpTo(e.Index)
			return errors.Join(s.persist(nil, []entry{e}), err, func() error { _, err := s.applyUpTo(e.Index); return err }(), io.ErrUnexpectedEOF)
		}, 6, 6},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := mustOpen(t, t.TempDir())
			fill(t, s, 5)
			if err := c.fail(s, entry{Index: 6, Term: 1, Kind: entryCommand, Data: data}); err == nil {
				t.Fatal("the step did not fail")
			}
			s = reopen(t, s)
			disk, err := s.saved()
			if err != nil || disk.Applied != c.applied || disk.Last != c.last {
				t.Errorf("after the failure the log ends at %d, applied is %d, %v, want %d and %d", disk.Last, disk.Applied, err, c.last, c.applied)
			}
			if err := s.check(); err != nil {
				t.Error(err)
			}
			// The restarted server repeats the write under its request id.
			if results := append(mustApply(t, s), commit(t, s, big)...); results[len(results)-1].Err != nil {
				t.Errorf("the repeated write is answered %v", results[len(results)-1].Err)
			}
			if _, n, err := listJobs(s, jobFilter{}, 0, 10); n != 6 || err != nil {
				t.Errorf("%d jobs in the end, %v, want 6", n, err)
			}
			if err := errors.Join(s.check(), s.close()); err != nil {
				t.Error(err)
			}
		})
	}
}

// full does something while the disk is full.
func full(s *store, do func() error) error {
	var pages int
	ctx := context.Background()
	if err := s.conn.QueryRowContext(ctx, "PRAGMA page_count").Scan(&pages); err != nil {
		return nil
	}
	if _, err := s.conn.ExecContext(ctx, fmt.Sprintf("PRAGMA max_page_count = %d", pages+5)); err != nil {
		return nil
	}
	return do()
}

// TestCluster_DiskFull: a server whose disk fails acknowledges nothing more,
// and ends; what it had acknowledged is there afterwards.
func TestCluster_DiskFull(t *testing.T) {
	s := mustOpen(t, t.TempDir())
	own, err := s.own()
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPlane(planeConfig{record: record{Name: "n1", ID: own.ID, Server: true}, Bind: "127.0.0.1:0", Key: testKey, Dir: t.TempDir()}, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer p.listener.Close()
	p.admitted.Store(true)
	c, err := newCluster(p, s, tickTime, idleLeader{})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.run(t.Context()) }()
	if err := c.call(t.Context(), func() { err = c.bootstrap(&bootstrapList{"test-cluster", []server{{"n1", own.ID}}}) }); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "leader", func() string { return "" }, c.leading)
	put := func(i int) error {
		_, err := c.propose(t.Context(), &command{Now: testStart, Put: []jobPut{{Job: job{Name: fmt.Sprint("job-", i), Schedule: "@manually", DisplayName: strings.Repeat("x", 50_000)}, Next: never}}})
		return err
	}
	if err := put(0); err != nil {
		t.Fatal(err)
	}
	if err := full(s, func() error { return nil }); err != nil { // the writer is idle
		t.Fatal(err)
	}
	n := 1
	for err = put(n); err == nil && n < 100; err = put(n) {
		n++
	}
	if !errors.Is(err, errUnknown) {
		t.Errorf("a write that met a full disk is answered %v, want %v", err, errUnknown)
	}
	if err := <-ended; err == nil {
		t.Error("the driver ended without an error")
	}
	if err := put(n + 1); !errors.Is(err, errNotLeader) {
		t.Errorf("a write after the end is answered %v, want %v", err, errNotLeader)
	}
	s = reopen(t, s)
	mustApply(t, s)
	for i := range n {
		if _, err := s.job(fmt.Sprint("job-", i)); err != nil {
			t.Errorf("job-%d was acknowledged: %v", i, err)
		}
	}
	if err := errors.Join(s.check(), s.close()); err != nil {
		t.Error(err)
	}
}

// TestCluster_OneSync: a server alone logs and applies a command in one durable
// transaction, and answers when that has committed: it needs no other. Before that
// nobody sees what the command has made.
func TestCluster_OneSync(t *testing.T) {
	a := startPeer(t, "a", 1)
	put(t, "one", a)
	var durable, other atomic.Int64
	var seen atomic.Bool
	a.must(a.cluster.call(t.Context(), func() { // the writer is idle
		a.store.disk = func(sync bool, tx func() error) error {
			if durable.Add(1); !sync {
				other.Add(1)
			}
			err := tx()
			seen.Store(a.store.shown.Load().paused)
			return err
		}
	}))
	for i, paused := range []bool{true, false, true} {
		_, err := a.cluster.propose(t.Context(), &command{Now: testStart, SetPaused: &paused})
		a.must(err)
		if n := durable.Load(); n != int64(i)+1 || other.Load() != 0 {
			t.Fatalf("%d commands took %d transactions, %d of them not durable", i+1, n, other.Load())
		}
		if seen.Load() == paused || a.store.shown.Load().paused != paused {
			t.Errorf("paused is %v: seen before the commit %v, after it %v", paused, seen.Load(), a.store.shown.Load().paused)
		}
	}
}

// TestOpenStore_Err: a directory that cannot be used is refused in one sentence
// that says what to do, and is left as it was.
func TestOpenStore_Err(t *testing.T) {
	locked := newStore(t)
	newer := t.TempDir()
	writeNewerStore(t, newer)
	garbage := t.TempDir()
	if err := os.WriteFile(filepath.Join(garbage, "belfry.db"), []byte(strings.Repeat("no database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := t.TempDir()
	if err := os.WriteFile(filepath.Join(empty, "belfry.db"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, dir, want string }{
		{"Locked", filepath.Dir(locked.path), errLocked.Error()},
		{"Newer", newer, errNewer.Error()},
		{"ReadOnly", readOnlyDir(t), "cannot write there, choose a directory that this user may write"},
		{"Garbage", garbage, "cannot read the database"},
		{"Empty", empty, "belfry.db is empty"},
		{"File", file, "cannot make the directory"},
		{"Nowhere", readOnlyDir(t) + "/data", "cannot make the directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := openStore(c.dir)
			if err == nil {
				s.close()
				t.Fatalf("openStore(%s) succeeded", c.dir)
			}
			if text := err.Error(); !strings.HasPrefix(text, "--data-dir") || !strings.Contains(text, c.want) || strings.Contains(text, "\n") {
				t.Errorf("openStore(%s): %q, want one sentence with %q", c.dir, text, c.want)
			}
		})
	}
}

// TestApply_UnknownFormat: an entry of another version's format stops apply,
// and nothing of it or behind it is done.
func TestApply_UnknownFormat(t *testing.T) {
	s := newStore(t)
	fill(t, s, 1)
	before := mustDump(t, s)
	if err := s.persist(nil, []entry{{Index: 2, Term: 1, Kind: entryCommand, Data: []byte{commandFormat + 1, 2, '{', '}'}}}); err != nil {
		t.Fatal(err)
	}
	if done, err := s.applyUpTo(2); err != nil || len(done) != 0 || !s.halted.Load() {
		t.Errorf("apply of a later format: %v, %v, halted %t; want nothing done, and to be halted", done, err, s.halted.Load())
	}
	if diff := cmp.Diff(before, mustDump(t, s)); diff != "" {
		t.Errorf("state behind it (-want +got):\n%s", diff)
	}
}

// TestInstall_Halted: a server that met an unknown format and then installs a snapshot applies every entry after it.
func TestInstall_Halted(t *testing.T) {
	leader, s := newStore(t), newStore(t)
	fill(t, leader, 3)
	path := filepath.Join(t.TempDir(), "snapshot")
	if err := leader.snapshot(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	at := position{Index: leader.applied.Load(), Term: 1}
	unknown := entry{Index: 1, Term: 1, Kind: entryCommand, Data: []byte{commandFormat + 1, 2, '{', '}'}}
	if err := s.persist(nil, []entry{unknown}); err != nil {
		t.Fatal(err)
	}
	mustApply(t, s)
	if !s.halted.Load() {
		t.Fatal("the store has applied an entry of an unknown format")
	}
	next := entry{Index: at.Index + 1, Term: 1, Kind: entryNoop}
	if err := s.install(path, at, nil, []entry{next}); err != nil {
		t.Fatal(err)
	}
	if done := mustApply(t, s); len(done) != 1 || done[0].Index != next.Index {
		t.Errorf("applied after the installation: %v, want entry %d", done, next.Index)
	}
}

// FuzzDecodeCommand: no entry, however torn, makes decodeCommand panic or take
// more than it was given; what it accepts comes back from encode as it was.
func FuzzDecodeCommand(f *testing.F) {
	for _, c := range []*command{
		{Actor: "anonymous", Now: 1, Put: []jobPut{{Job: job{Name: "a", Tags: map[string]string{"b": "c"}}}}},
		{Finish: []report{{result: result{Execution: 1, Outcome: "success", Output: []byte("one")}}, {result: result{Execution: 2, Output: []byte("two")}}}},
		{Consume: []decision{{Job: 1, Targets: []target{{"n", math.MaxUint64}}}}},
	} {
		data, err := c.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
		f.Add(data[:len(data)-1])
		f.Add(data[:1])
	}
	f.Add([]byte{})
	f.Add([]byte{commandFormat, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := decodeCommand(data)
		if err != nil {
			return
		}
		again, err := c.encode()
		if err != nil {
			t.Fatalf("encode of %q: %v", data, err)
		}
		back, err := decodeCommand(again)
		if diff := cmp.Diff(c, back, cmp.AllowUnexported(report{}), cmpopts.EquateEmpty()); err != nil || diff != "" {
			t.Errorf("%q comes back as (-want +got): %v\n%s", data, err, diff)
		}
	})
}

// ---- The rules of apply, one by one

// stage is a store with jobs in a known state, to try commands on.
type stage struct {
	t    *testing.T
	s    *store
	jobs map[string]jobVersion

	listeners map[string][]string // in each command
}

var stageNext = testStart + int64(time.Minute)

// newStage stores jobs: all due at stageNext, except as they say themselves.
func newStage(t *testing.T, jobs ...job) *stage {
	t.Helper()
	g := &stage{t: t, s: newStore(t), jobs: map[string]jobVersion{}}
	for _, j := range jobs {
		if j.Schedule == "" {
			j.Schedule = "@every 1m"
		}
		g.put(jobPut{Job: j, Next: stageNext})
	}
	return g
}

// do applies one command, now is testStart if it says none.
func (g *stage) do(c *command) applied {
	g.t.Helper()
	if c.Now == 0 {
		c.Now = testStart
	}
	c.Listeners = g.listeners
	return commit(g.t, g.s, c)[0]
}

func (g *stage) put(p jobPut) applied {
	g.t.Helper()
	res := g.do(&command{Put: []jobPut{p}})
	if res.Err == nil {
		g.jobs[p.Job.Name] = jobVersion{res.Jobs[0], int64(res.Index)}
	}
	return res
}

func (g *stage) row(name string) *jobRow {
	g.t.Helper()
	row, err := g.s.job(name)
	if err != nil {
		g.t.Fatalf("%s: %v", name, err)
	}
	return row
}

// tick decides the next tick of a job to run on nodes.
func (g *stage) tick(name string, nodes ...string) []int64 {
	g.t.Helper()
	row := g.row(name)
	d := decision{Job: row.version.ID, Rev: row.version.Rev, Due: row.next, Next: row.next + int64(time.Minute)}
	for _, n := range nodes {
		d.Targets = append(d.Targets, target{n, 7})
	}
	res := g.do(&command{Now: row.next, Consume: []decision{d}})
	if !res.Accepted[0] {
		g.t.Fatalf("tick %d of %s was not accepted", row.next, name)
	}
	return res.Started[0]
}

// end reports outcomes of executions, in one command.
func (g *stage) end(outcome string, executions ...int64) {
	g.t.Helper()
	c := &command{Now: stageNext + 5}
	for _, id := range executions {
		c.Finish = append(c.Finish, report{result: result{Execution: id, Node: g.nodeOf(id), Incarnation: 7, Started: stageNext, Finished: stageNext + 5, Outcome: outcome}})
	}
	g.do(c)
}

// nodeOf is the node that an execution is with, empty if it is gone.
func (g *stage) nodeOf(execution int64) string {
	e, err := g.s.execution(execution)
	if err != nil && !errors.Is(err, errNoExecution) {
		g.t.Fatal(err)
	}
	return e.Node
}

// lose closes executions as lost.
func (g *stage) lose(executions ...int64) {
	g.t.Helper()
	c := &command{Now: stageNext + 5}
	for _, id := range executions {
		c.Finish = append(c.Finish, closedAt(c.Now, id, 7, outcomeLost))
	}
	g.do(c)
}

// closedAt is the end of an execution by the leader.
func closedAt(now, execution int64, incarnation uint64, outcome string) report {
	e := executionRow{ID: execution, incarnation: incarnation}
	return moment{now: now}.closing(e, outcome, "why\n")
}

// pending are the rows that wait, as "cause job attempt".
// pending returns all pending rows, in the order of their ids.
func (s *store) pending() ([]pendingRow, error) {
	return rowsOf[pendingRow](s.viewEach, "SELECT * FROM pending ORDER BY id")
}

func (g *stage) pending() (list []string, rows []pendingRow) {
	g.t.Helper()
	rows, err := g.s.pending()
	if err != nil {
		g.t.Fatal(err)
	}
	for _, p := range rows {
		for name, v := range g.jobs {
			if v.ID == p.JobID {
				list = append(list, fmt.Sprintf("%s %s %d", p.Cause, name, p.Attempt))
			}
		}
	}
	return list, rows
}

func (g *stage) wantPending(want ...string) {
	g.t.Helper()
	got, _ := g.pending()
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		g.t.Errorf("pending rows (-want +got):\n%s", diff)
	}
}

// runPending decides the only pending row.
func (g *stage) runPending(targets ...target) applied {
	g.t.Helper()
	_, rows := g.pending()
	if len(rows) != 1 {
		g.t.Fatalf("%d pending rows, want 1", len(rows))
	}
	jobs, err := g.s.jobsByID([]int64{rows[0].JobID})
	if err != nil {
		g.t.Fatal(err)
	}
	d := decision{Pending: rows[0].ID, Job: rows[0].JobID, Rev: jobs[0].version.Rev, Targets: targets}
	if len(targets) == 0 {
		d.Outcome, d.Reason = outcomeSkipped, "why"
	}
	return g.do(&command{Consume: []decision{d}})
}

// skipped are the ticks that did not run, as "cause outcome count: reason".
func (g *stage) skipped() (list []string) {
	g.t.Helper()
	err := g.s.viewEach("SELECT cause || ' ' || outcome || ' ' || count || ': ' || reason FROM ticks ORDER BY id", nil, func(scan scanner) error {
		var text string
		err := scan(&text)
		list = append(list, text)
		return err
	})
	if err != nil {
		g.t.Fatal(err)
	}
	return list
}

// TestApply_Put: a definition replaces only the one that it was computed from,
// under a parent that is there, and never loses or repeats a tick.
func TestApply_Put(t *testing.T) {
	due := stageNext + 10 // the tick at stageNext is due then
	for _, c := range []struct {
		name    string
		now     int64
		put     func(g *stage) jobPut
		want    error
		decided bool // the tick at stageNext is, before the put comes
	}{
		{name: "OKNew", put: func(g *stage) jobPut { return jobPut{Job: job{Name: "new"}, Next: stageNext} }},
		{name: "OKChanged", put: func(g *stage) jobPut { return jobPut{Base: g.jobs["a"], Job: job{Name: "a"}, Next: due} }},
		{name: "OKChangedWhileDueIfKept", now: due, put: func(g *stage) jobPut { return jobPut{Base: g.jobs["a"], Job: job{Name: "a"}, Keep: true} }},
		{name: "OKDisabledWhileDecided", now: due, decided: true, put: func(g *stage) jobPut { return jobPut{Base: g.jobs["a"], Job: job{Name: "a", Disabled: true}, Next: 1} }},
		{name: "OKNever", now: due, decided: true, put: func(g *stage) jobPut { return jobPut{Base: g.jobs["a"], Job: job{Name: "a"}, Next: never} }},
		{name: "OKParent", put: func(g *stage) jobPut { return jobPut{Job: job{Name: "new", ParentJob: "a"}} }},
		{name: "ErrExists", put: func(g *stage) jobPut { return jobPut{Job: job{Name: "a"}, Next: stageNext} }, want: errConflict},
		{name: "ErrGone", put: func(g *stage) jobPut { return jobPut{Base: g.jobs["a"], Job: job{Name: "new"}, Next: stageNext} }, want: errConflict},
		{name: "ErrChanged", put: func(g *stage) jobPut {
			return jobPut{Base: jobVersion{g.jobs["a"].ID, g.jobs["a"].Rev - 1}, Job: job{Name: "a"}, Next: due}
		}, want: errConflict},
		{name: "ErrUndecided", now: due, put: func(g *stage) jobPut {
			return jobPut{Base: g.jobs["a"], Job: job{Name: "a", Disabled: true}, Next: due + 1}
		}, want: errUndecided},
		{name: "ErrNextNotBehindDecided", now: stageNext - 1, decided: true, put: func(g *stage) jobPut {
			return jobPut{Base: g.jobs["a"], Job: job{Name: "a"}, Next: stageNext}
		}, want: errConflict},
		{name: "ErrParent", put: func(g *stage) jobPut { return jobPut{Job: job{Name: "new", ParentJob: "none"}} }, want: errParent},
		{name: "ErrOwnParent", put: func(g *stage) jobPut { return jobPut{Job: job{Name: "new", ParentJob: "new"}} }, want: errParent},
		{name: "ErrParentCycle", put: func(g *stage) jobPut {
			return jobPut{Base: g.jobs["a"], Job: job{Name: "a", ParentJob: "grandchild"}}
		}, want: errParentCycle},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newStage(t, job{Name: "a"}, job{Name: "child", ParentJob: "a"}, job{Name: "grandchild", ParentJob: "child"})
			if c.decided {
				g.tick("a", "n1")
			}
			before := mustDump(t, g.s)
			p := c.put(g)
			res := g.do(&command{Now: max(c.now, testStart), Put: []jobPut{p}})
			if res.Err != c.want {
				t.Fatalf("put %+v is answered %v, want %v", p, res.Err, c.want)
			}
			if c.want != nil {
				if diff := cmp.Diff(withoutCluster(before), withoutCluster(mustDump(t, g.s))); diff != "" {
					t.Errorf("a refused put changed the state (-want +got):\n%s", diff)
				}
				return
			}
			want := p.Next
			if p.Keep {
				want = stageNext
			}
			if row := g.row(p.Job.Name); row.next != want {
				t.Errorf("next is %d, want %d", row.next, want)
			}
		})
	}
}

// TestApply_PutAll: of several definitions in one command all are stored, or
// none.
func TestApply_PutAll(t *testing.T) {
	g := newStage(t)
	res := g.do(&command{Put: []jobPut{{Job: job{Name: "a"}}, {Job: job{Name: "b", ParentJob: "a"}}, {Job: job{Name: "c", ParentJob: "none"}}}})
	if _, n, err := listJobs(g.s, jobFilter{}, 0, 9); res.Err != errParent || n != 0 || err != nil {
		t.Errorf("%d jobs, %v, %v, want none and %v", n, res.Err, err, errParent)
	}
	if res = g.do(&command{Put: []jobPut{{Job: job{Name: "a"}}, {Job: job{Name: "b", ParentJob: "a"}}}}); res.Err != nil || len(res.Jobs) != 2 {
		t.Errorf("jobs %v, %v, want two", res.Jobs, res.Err)
	}
}

// TestApply_RefusedHalfway: what a refused command had changed goes, and what the
// commands before and after it in the same transaction have made stays. Who watches is
// told of that once, and of nothing else.
func TestApply_RefusedHalfway(t *testing.T) {
	s, on := newStore(t), true
	put := func(jobs ...job) *command {
		c := &command{Now: testStart, Submit: true}
		for _, j := range jobs {
			c.Put = append(c.Put, jobPut{Job: j, Next: never})
		}
		return c
	}
	s.events.enter()
	defer s.events.leave()
	results := commit(t, s, put(job{Name: "a"}), put(job{Name: "b"}, job{Name: "c", ParentJob: "none"}), put(job{Name: "d"}),
		&command{Now: testStart, SetPaused: &on}, put(job{Name: "e"}))
	for i, want := range []error{nil, errParent, nil, nil, errPaused} {
		if results[i].Err != want {
			t.Errorf("command %d: %v, want %v", i, results[i].Err, want)
		}
	}
	var names string
	if err := s.view("SELECT group_concat(name) FROM jobs", nil, &names); err != nil || names != "a,d" {
		t.Errorf("the jobs are %q, %v, want a and d", names, err)
	}
	list, _, _ := s.events.since(0)
	if want := []mark{{eventJob, results[0].Jobs[0]}, {eventJob, results[2].Jobs[0]}, {eventPaused, 0}}; len(list) != 1 || !slices.Equal(list[0].marks, want) {
		t.Errorf("who watches is told %+v in %d windows, want %+v", list[0].marks, len(list), want)
	}
}

// TestStore_HalfDoneTwice: a transaction that is done again, because a command in it was refused halfway, takes back
// what it had changed in memory too: what replaces the end of the log, what is trimmed from its beginning, and what
// those who watch are told.
func TestStore_HalfDoneTwice(t *testing.T) {
	s := mustOpen(t, t.TempDir())
	s.kept = logRetention{entries: 2, bytes: logBytesKept, pinned: logBytesPinned, slack: 1}
	jobs := fill(t, s, 4)
	first, ok := s.events.enter()
	if !ok {
		t.Fatal("nobody may watch")
	}
	defer s.events.leave()
	putting := func(index, term uint64, puts ...jobPut) entry {
		data, err := (&command{Now: testStart, Put: puts}).encode()
		if err != nil {
			t.Fatal(err)
		}
		return entry{Index: index, Term: term, Kind: entryCommand, Data: data}
	}
	a := jobPut{Base: jobs[1], Job: job{Name: "job-000001", Schedule: "@manually"}, Next: never}
	skip, err := (&command{Now: testStart + 3, Consume: []decision{{Job: jobs[3].ID, Rev: jobs[3].Rev, Due: testStart + 3,
		Next: never, Outcome: outcomeSkipped, Reason: noNodeReason}}}).encode()
	if err != nil {
		t.Fatal(err)
	}
	b := jobPut{Base: jobs[2], Job: job{Name: "job-000002", Schedule: "@manually"}, Next: never}
	none := jobPut{Job: job{Name: "x", ParentJob: "none"}, Next: never}
	if err := s.persist(&hardState{Term: 1}, []entry{putting(5, 1, a), putting(6, 1, none), putting(7, 1, none), putting(8, 1, none)}); err != nil {
		t.Fatal(err)
	}
	results, err := s.write(&hardState{Term: 2}, []entry{{Index: 5, Term: 2, Kind: entryCommand, Data: skip},
		putting(6, 2, a, none), putting(7, 2, b), {Index: 8, Term: 2, Kind: entryNoop}}, 8)
	if err != nil || len(results) != 4 || !slices.Equal(results[0].Accepted, []bool{true}) {
		t.Fatalf("the commands are answered %+v, %v", results, err)
	}
	if results = results[1:]; results[0].Err != errParent || results[1].Err != nil {
		t.Fatalf("the commands are answered %+v, %v", results, err)
	}
	s.events.close()
	windows, _, _ := s.events.since(first)
	var told []mark
	for _, w := range windows {
		told = append(told, w.marks...)
	}
	if n := s.stats.ticks[slices.Index(tickOutcomes, outcomeSkipped)].Load(); n != 1 {
		t.Errorf("%d ticks are counted as skipped, want 1", n)
	}
	if want := []mark{{eventJob, jobs[3].ID}, {eventJob, jobs[2].ID}}; !slices.Equal(told, want) {
		t.Errorf("who watches is told %+v, want %+v", told, want)
	}
	ends, base := slices.Clone(s.logEnds), s.logFirst
	for i := range ends {
		ends[i] -= s.logEnds[0]
	}
	s = reopen(t, s)
	if s.logFirst != base || base <= 1 || !slices.Equal(s.logEnds, ends) || len(s.unapplied) != 0 {
		t.Errorf("the log in memory began at %d with %v, on disk at %d with %v and %d to apply",
			base, ends, s.logFirst, s.logEnds, len(s.unapplied))
	}
	if disk, err := s.saved(); err != nil || disk.Last != 8 || disk.Applied != 8 || disk.State.Term != 2 {
		t.Errorf("saved is %+v, %v", disk, err)
	}
	s.close()
}

// TestApply_Delete: a job goes only as the one that was looked at, and not
// while others name it as parent; its name is free at once.
func TestApply_Delete(t *testing.T) {
	g := newStage(t, job{Name: "a", Retries: 1}, job{Name: "child", ParentJob: "a"})
	a, child := g.jobs["a"], g.jobs["child"]
	running := g.tick("a", "n1", "n2")
	g.end(outcomeFailed, running[0])
	for _, c := range []struct {
		name string
		v    jobVersion
		want error
	}{
		{"ErrHasChildren", a, errHasChildren},
		{"ErrChanged", jobVersion{child.ID, child.Rev + 1}, errConflict},
		{"ErrNoJob", jobVersion{12345, 1}, errNoJob},
		{"OKChild", child, nil},
		{"OKParent", a, nil},
		{"ErrDeleted", a, errNoJob},
	} {
		if res := g.do(&command{Delete: &c.v}); res.Err != c.want {
			t.Errorf("%s: %v, want %v", c.name, res.Err, c.want)
		}
	}
	g.wantPending()
	if res := g.put(jobPut{Job: job{Name: "a"}, Next: stageNext}); res.Err != nil || res.Jobs[0] == a.ID {
		t.Errorf("the name is answered %v and id %v, want a new id", res.Err, res.Jobs)
	}
	// What it still runs ends under the old id, and never counts for the new job.
	g.end(outcomeSuccess, running[1])
	if row := g.row("a"); row.SuccessCount != 0 || row.open != 0 {
		t.Errorf("the new job has %d successes and %d open, want none", row.SuccessCount, row.open)
	}
}

// TestApply_Decide: a tick is accepted once, for the job as the leader knew it,
// enabled, and only as the one that is next.
func TestApply_Decide(t *testing.T) {
	to := []target{{"n1", 7}}
	for _, c := range []struct {
		name string
		job  job
		edit func(d *decision)
		want bool
	}{
		{name: "OK", want: true},
		{name: "OKSkip", edit: func(d *decision) { d.Targets, d.Outcome, d.Reason = nil, outcomeSkipped, "why" }, want: true},
		{name: "OKRange", edit: func(d *decision) {
			d.Targets, d.Outcome, d.Until, d.Count = nil, outcomeMissed, d.Due+int64(2*time.Minute), 3
			d.Next = d.Until + 1
		}, want: true},
		{name: "RefusedChanged", edit: func(d *decision) { d.Rev-- }},
		{name: "RefusedGone", edit: func(d *decision) { d.Job++ }},
		{name: "RefusedNotNext", edit: func(d *decision) { d.Due++ }},
		{name: "RefusedDisabled", job: job{Disabled: true}},
		{name: "RefusedChild", job: job{ParentJob: "parent"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.job.Name = "a"
			g := newStage(t, job{Name: "parent"}, c.job)
			v, before := g.jobs["a"], g.row("a")
			d := decision{Job: v.ID, Rev: v.Rev, Due: stageNext, Next: stageNext + int64(time.Minute), Targets: to}
			if c.edit != nil {
				c.edit(&d)
			}
			res := g.do(&command{Now: stageNext, Consume: []decision{d, d}}) // the second is stale by then
			if diff := cmp.Diff([]bool{c.want, false}, res.Accepted); diff != "" {
				t.Errorf("accepted (-want +got):\n%s", diff)
			}
			row := g.row("a")
			want := []int64{stageNext, before.fired, 0}
			if c.want {
				want = []int64{d.Next, max(d.Due, d.Until), int64(len(d.Targets))}
			}
			if diff := cmp.Diff(want, []int64{row.next, row.fired, row.open}); diff != "" {
				t.Errorf("next, fired and open (-want +got):\n%s", diff)
			}
			if got := len(res.Started[0]); c.want && got != len(d.Targets) || !c.want && got != 0 {
				t.Errorf("%d executions started", got)
			}
		})
	}
}

// TestApply_Forbid: where concurrency is forbidden, a run of any cause that the
// leader let through becomes a skip with its reason; only a retry may start
// beside its own group.
func TestApply_Forbid(t *testing.T) {
	forbidding := func(t *testing.T) (*stage, []int64) {
		g := newStage(t, job{Name: "parent"}, job{Name: "a", Concurrency: concurrencyForbid, Retries: 1})
		return g, g.tick("a", "n1", "n2")
	}
	t.Run("Tick", func(t *testing.T) {
		g, _ := forbidding(t)
		if started := g.tick("a", "n1"); len(started) != 0 {
			t.Errorf("started %v beside an open group", started)
		}
		if diff := cmp.Diff([]string{"tick skipped 1: " + overlapReason}, g.skipped()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
	t.Run("Hand", func(t *testing.T) {
		g, _ := forbidding(t)
		c := &command{Request: "r", Consume: []decision{{Job: g.jobs["a"].ID, Rev: g.jobs["a"].Rev, Targets: []target{{"n1", 7}}}}}
		if res := g.do(c); res.Refused != overlapReason || len(res.Started[0]) != 0 {
			t.Errorf("refused %q, started %v, want a refusal", res.Refused, res.Started)
		}
		if res := g.do(c); !res.repeated() || res.Refused != overlapReason {
			t.Errorf("the same request again: %+v, want the same refusal", res)
		}
	})
	t.Run("RetryOfOwnGroup", func(t *testing.T) {
		g, running := forbidding(t)
		g.end(outcomeFailed, running[0])
		if res := g.runPending(target{"n1", 7}); len(res.Started[0]) != 1 {
			t.Errorf("started %v, want the retry beside the other half of its group", res.Started)
		}
		if row := g.row("a"); row.open != 2 {
			t.Errorf("open is %d, want 2", row.open)
		}
	})
	t.Run("RetryBesideAnother", func(t *testing.T) {
		g := newStage(t, job{Name: "a", Retries: 1})
		first := g.tick("a", "n1")
		g.tick("a", "n1")
		g.end(outcomeFailed, first...)
		g.put(jobPut{Base: g.jobs["a"], Job: job{Name: "a", Schedule: "@every 1m", Retries: 1, Concurrency: concurrencyForbid}, Keep: true})
		if res := g.runPending(target{"n1", 7}); len(res.Started[0]) != 0 {
			t.Errorf("started %v beside another group", res.Started)
		}
		g.wantPending()
		if diff := cmp.Diff([]string{"retry skipped 1: " + overlapReason}, g.skipped()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
	t.Run("Child", func(t *testing.T) {
		g := newStage(t, job{Name: "parent"}, job{Name: "a", ParentJob: "parent", Concurrency: concurrencyForbid})
		g.do(&command{Consume: []decision{{Job: g.jobs["a"].ID, Rev: g.jobs["a"].Rev, Targets: []target{{"n1", 7}}}}})
		g.end(outcomeSuccess, g.tick("parent", "n1")...)
		g.runPending() // makes a row of each child
		if res := g.runPending(target{"n1", 7}); len(res.Started[0]) != 0 {
			t.Errorf("started %v beside an open group", res.Started)
		}
		g.wantPending()
	})
}

// decide gives a cause of a job to nodes: a pending row, or a run by hand without one.
func (g *stage) decide(now int64, p pendingRow, name string, last bool, limits map[string]int, nodes ...string) applied {
	g.t.Helper()
	d := decision{Pending: p.ID, Job: g.jobs[name].ID, Rev: g.jobs[name].Rev, Last: last}
	for _, n := range nodes {
		d.Targets = append(d.Targets, target{n, 7})
	}
	return g.do(&command{Now: now, Consume: []decision{d}, Limits: limits})
}

// woken are the pending rows that a command has the leader look at, as "cause job attempt".
func (g *stage) woken(res applied) (list []string) {
	g.t.Helper()
	_, rows := g.pending()
	for _, id := range res.Freed {
		for _, p := range rows {
			if id == p.ID {
				list = append(list, fmt.Sprintf("%s %d for %s", p.Cause, p.Asked-stageNext, p.WaitsFor))
			}
		}
	}
	return list
}

// waiting are the pending rows as "cause asked for".
func (g *stage) waiting() []string {
	_, rows := g.pending()
	list := []string{}
	for _, p := range rows {
		list = append(list, fmt.Sprintf("%s %d for %s", p.Cause, p.Asked-stageNext, p.WaitsFor))
	}
	return list
}

func (g *stage) expect(what string, want, got []string) {
	g.t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		g.t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// TestApply_Waits: what cannot start waits for that which it needs, and starts in the order in which it was due.
func TestApply_Waits(t *testing.T) {
	const minute = int64(time.Minute)
	finish := func(g *stage, outcome string, ids ...int64) applied {
		c := &command{Now: stageNext + 5}
		for _, id := range ids {
			c.Finish = append(c.Finish, report{result: result{Execution: id, Node: g.nodeOf(id), Incarnation: 7, Started: stageNext, Finished: stageNext + 5, Outcome: outcome}})
		}
		return g.do(c)
	}
	t.Run("Mutex", func(t *testing.T) {
		g := newStage(t, job{Name: "a", Mutex: "m"}, job{Name: "b", Mutex: "m"}, job{Name: "c", Mutex: "other"})
		a := g.tick("a", "n1", "n2")
		if c := g.tick("c", "n1"); len(a) != 2 || len(c) != 1 {
			t.Fatalf("started %v and %v, want two executions, and one of another mutex", a, c)
		}
		for _, name := range []string{"b", "a"} { // the second is due a minute later
			if started := g.tick(name, "n1"); len(started) != 0 {
				t.Errorf("%s started %v beside the other", name, started)
			}
		}
		g.expect("waiting", []string{"tick 0 for mutex m", fmt.Sprintf("tick %d for mutex m", minute)}, g.waiting())
		_, rows := g.pending()
		finish(g, outcomeFailed, a[0])
		if res := g.decide(stageNext, rows[0], "b", false, nil, "n1"); len(res.Started[0]) != 0 {
			t.Errorf("b started %v while half of a was open", res.Started)
		}
		g.expect("woken", []string{"tick 0 for mutex m"}, g.woken(finish(g, outcomeSuccess, a[1])))
		if res := g.decide(stageNext, rows[1], "a", false, nil, "n1"); len(res.Started[0]) != 0 {
			t.Errorf("a started %v before b, which was due earlier", res.Started)
		}
		res := g.decide(stageNext+3*minute, rows[1], "a", true, nil, "n1")
		g.expect("skipped", []string{"tick skipped 1: waited 2m0s for mutex m, which b had"}, g.skipped())
		if res = g.decide(stageNext, rows[0], "b", false, nil, "n1"); len(res.Started[0]) != 1 {
			t.Errorf("b: %+v, want it to start once nothing else is open", res)
		}
		g.expect("waiting", nil, g.waiting())
	})
	t.Run("Held", func(t *testing.T) { // who is held lets others go before, and keeps nobody from starting
		for _, thing := range []string{"mutex m", "node n1"} {
			mutex, limits := "m", map[string]int(nil)
			if thing == "node n1" {
				mutex, limits = "", map[string]int{"n1": 1}
			}
			g := newStage(t, job{Name: "a", Mutex: mutex}, job{Name: "b", Mutex: mutex, Metadata: map[string]string{"team": "web", "tier": "1"}}, job{Name: "c", Mutex: mutex})
			a := g.decide(stageNext, pendingRow{}, "a", false, limits, "n1").Started[0]
			g.decide(stageNext+1, pendingRow{}, "b", false, limits, "n1")
			g.decide(stageNext+2, pendingRow{}, "c", false, limits, "n1")
			forced := g.do(&command{Now: stageNext + 3, Limits: limits, Consume: []decision{{Job: g.jobs["b"].ID, Rev: g.jobs["b"].Rev, Targets: []target{{"n1", 7}}, Force: true}}})
			g.expect("waiting", []string{"hand 1 for " + thing, "hand 2 for " + thing, "hand 3 for " + thing}, g.waiting())
			_, rows := g.pending()
			if forced.Refused != "" || rows[0].Forced || !rows[2].Forced {
				t.Fatalf("%+v, %+v: want only the third forced", forced, rows)
			}
			set := func(name string, r *rule) { g.do(&command{SetRule: &ruleSet{ruleHold, name, r}}) }
			set("db", &rule{Metadata: map[string]string{"team": "db"}})
			g.expect("woken while others are held", []string{"hand 1 for " + thing}, g.woken(finish(g, outcomeSuccess, a...)))
			set("web", &rule{Metadata: map[string]string{"team": "web"}})
			res := g.decide(stageNext, rows[1], "c", false, limits, "n1")
			if len(res.Started) == 0 || len(res.Started[0]) != 1 {
				t.Fatalf("%s: c, which is not held: %+v", thing, res)
			}
			g.expect("woken", []string{"hand 3 for " + thing}, g.woken(finish(g, outcomeSuccess, res.Started[0]...)))
			d := decision{Pending: rows[2].ID, Job: rows[2].JobID, Rev: g.jobs["b"].Rev, Targets: []target{{"n1", 7}}, Force: true}
			if res = g.do(&command{Now: stageNext, Limits: limits, Consume: []decision{d}}); len(res.Started[0]) != 1 {
				t.Fatalf("%s: the forced run: %+v", thing, res)
			}
			set("web", nil)
			g.expect("woken after the release", []string{"hand 1 for " + thing}, g.woken(finish(g, outcomeSuccess, res.Started[0]...)))
		}
	})
	t.Run("MutexLost", func(t *testing.T) {
		g := newStage(t, job{Name: "a", Mutex: "m"}, job{Name: "b", Mutex: "m"})
		a := g.tick("a", "n1")
		g.tick("b", "n1")
		g.lose(a...)
		_, rows := g.pending()
		if res := g.decide(stageNext, rows[0], "b", false, nil, "n1"); len(res.Started[0]) != 1 {
			t.Errorf("b does not start after the run of a was lost: %+v", res)
		}
	})
	t.Run("MutexOfDeleted", func(t *testing.T) {
		g := newStage(t, job{Name: "a", Mutex: "m"}, job{Name: "b", Mutex: "m"})
		a := g.tick("a", "n1")
		g.do(&command{Delete: &jobVersion{g.jobs["a"].ID, g.jobs["a"].Rev}})
		if started := g.tick("b", "n1"); len(started) != 0 {
			t.Errorf("b started %v while what the deleted job began goes on", started)
		}
		g.expect("woken", []string{"tick 0 for mutex m"}, g.woken(finish(g, outcomeSuccess, a...)))
	})
	t.Run("MutexHeldByRetry", func(t *testing.T) {
		g := newStage(t, job{Name: "a", Mutex: "m", Retries: 1}, job{Name: "b", Mutex: "m"})
		finish(g, outcomeFailed, g.tick("a", "n1")...)
		if started := g.tick("b", "n1"); len(started) != 0 {
			t.Errorf("b started %v between the attempts of a", started)
		}
		_, rows := g.pending()
		res := g.decide(stageNext, rows[0], "a", false, nil, "n1")
		if len(res.Started[0]) != 1 {
			t.Fatalf("the retry of a did not start beside b, which waits: %+v", res)
		}
		g.expect("woken", []string{"tick 0 for mutex m"}, g.woken(finish(g, outcomeFailed, res.Started[0]...)))
	})
	t.Run("Queue", func(t *testing.T) {
		g := newStage(t, job{Name: "a", Concurrency: concurrencyQueue})
		a := g.tick("a", "n1")
		own := ownGroup(g.jobs["a"].ID)
		g.tick("a", "n1")
		g.expect("waiting", []string{fmt.Sprintf("tick %d for %s", minute, own)}, g.waiting())
		g.tick("a", "n1")
		g.expect("waiting", []string{fmt.Sprintf("tick %d for %s", 2*minute, own)}, g.waiting())
		g.expect("skipped", []string{"tick skipped 1: the run that was due at " + timeOf(stageNext+2*minute).Format(time.RFC3339) + " took its place"}, g.skipped())
		g.expect("woken", []string{fmt.Sprintf("tick %d for %s", 2*minute, own)}, g.woken(finish(g, outcomeSuccess, a...)))
		if res := g.decide(stageNext, pendingRow{}, "a", false, nil, "n1"); len(res.Started[0]) != 1 {
			t.Errorf("a run by hand did not start in the place of one that waited: %+v", res)
		}
		g.expect("waiting", nil, g.waiting())
	})
	t.Run("HandWaits", func(t *testing.T) {
		g := newStage(t, job{Name: "a", Concurrency: concurrencyQueue})
		g.tick("a", "n1")
		if res := g.decide(stageNext, pendingRow{}, "a", false, nil, "n1"); !res.Accepted[0] || len(res.Started[0]) != 0 || res.Refused != "" {
			t.Errorf("a run by hand beside an open group: %+v, want it accepted", res)
		}
		g.expect("waiting", []string{"hand 0 for " + ownGroup(g.jobs["a"].ID)}, g.waiting())
	})
	t.Run("Replace", func(t *testing.T) {
		g := newStage(t, job{Name: "a", Concurrency: concurrencyReplace, Retries: 5})
		a := g.tick("a", "n1", "n2")
		finish(g, outcomeFailed, a[0])
		g.tick("a", "n1")
		g.expect("waiting", []string{fmt.Sprintf("tick %d for %s", minute, ownGroup(g.jobs["a"].ID))}, g.waiting())
		finish(g, outcomeFailed, a[1])
		if row := g.row("a"); row.open != 0 {
			t.Errorf("%d are open after the end of a group that is replaced, want no retry", row.open)
		}
		_, rows := g.pending()
		if res := g.decide(stageNext, rows[0], "a", false, nil, "n1"); len(res.Started[0]) != 1 {
			t.Errorf("%+v, want it to start once the open group has closed", res)
		}
	})
	t.Run("ReplaceRetry", func(t *testing.T) {
		g := newStage(t, job{Name: "a", Concurrency: concurrencyReplace, Retries: 5})
		finish(g, outcomeFailed, g.tick("a", "n1")...)
		if started := g.tick("a", "n1"); len(started) != 1 {
			t.Errorf("started %v, want a run in the place of a retry that waited", started)
		}
		g.expect("waiting", nil, g.waiting())
	})
	t.Run("MutexPutOnOpenGroups", func(t *testing.T) { // each has a retry, and neither waits for that of the other
		g := newStage(t, job{Name: "a", Retries: 1}, job{Name: "b", Retries: 1})
		finish(g, outcomeFailed, slices.Concat(g.tick("a", "n1"), g.tick("a", "n1"), g.tick("b", "n1"))...)
		for _, name := range []string{"a", "b"} {
			g.put(jobPut{Base: g.jobs[name], Job: job{Name: name, Schedule: "@every 1m", Retries: 1, Mutex: "m"}, Keep: true})
		}
		_, rows := g.pending()
		for i, name := range []string{"a", "a", "b"} {
			res := g.decide(stageNext, rows[i], name, false, nil, "n1")
			if len(res.Started[0]) != 1 {
				t.Fatalf("a retry of %s did not start when nothing ran: %+v; waiting: %q", name, res, g.waiting())
			}
			if next := rows[(i+1)%3]; i < 2 && len(g.decide(stageNext, next, []string{"a", "b"}[i], false, nil, "n1").Started[0]) != 0 {
				t.Errorf("retry %d started beside another", i+1)
			}
			finish(g, outcomeFailed, res.Started[0]...)
		}
	})
	limits := map[string]int{"n1": 1, "n2": 2}
	t.Run("Room", func(t *testing.T) {
		g := newStage(t, job{Name: "a"}, job{Name: "b"})
		a := g.decide(stageNext, pendingRow{}, "a", false, limits, "n1").Started[0]
		if res := g.decide(stageNext, pendingRow{}, "b", false, limits, "n1"); len(a) != 1 || len(res.Started[0]) != 0 {
			t.Errorf("started %v and %v on a node for one", a, res.Started)
		}
		res := g.decide(stageNext+1, pendingRow{}, "a", false, limits, "n1")
		g.expect("waiting", []string{"hand 0 for node n1", "hand 1 for node n1"}, g.waiting())
		g.expect("looked at again, as another node may have room", []string{"hand 1 for node n1"}, g.woken(res))
		_, rows := g.pending()
		g.expect("looked at once more", nil, g.woken(g.decide(stageNext+1, rows[1], "a", false, limits, "n1")))
		g.expect("woken", []string{"hand 0 for node n1"}, g.woken(finish(g, outcomeFailed, a...)))
		if res := g.decide(stageNext, rows[1], "a", false, limits, "n1"); len(res.Started[0]) != 0 {
			t.Errorf("started %v before what was asked for earlier", res.Started)
		}
		if res := g.decide(stageNext, rows[0], "b", false, limits, "n1"); len(res.Started[0]) != 1 {
			t.Errorf("%+v, want the first to start", res)
		}
		g.decide(stageNext+2*minute, rows[1], "a", true, limits, "n1")
		g.expect("skipped", []string{"hand skipped 1: waited 2m0s for node n1, which runs 1 at once"}, g.skipped())
	})
	t.Run("Slots", func(t *testing.T) {
		g := newStage(t, job{Name: "parent"}, job{Name: "child", ParentJob: "parent"})
		g.decide(stageNext, pendingRow{}, "parent", false, limits, "n1")
		res := g.decide(stageNext+1, pendingRow{}, "parent", false, limits, "n1", "n2", "n3")
		if len(res.Started[0]) != 2 || g.row("parent").open != 4 {
			t.Fatalf("started %v, %d are open, want two of three nodes, and a slot that waits", res.Started, g.row("parent").open)
		}
		g.expect("waiting", []string{"slot 1 for node n1"}, g.waiting())
		finish(g, outcomeSuccess, res.Started[0]...)
		g.expect("waiting", []string{"slot 1 for node n1"}, g.waiting())
		_, rows := g.pending()
		last := g.decide(stageNext, rows[0], "parent", false, map[string]int{"n1": 2}, "n1")
		if e, err := g.s.execution(last.Started[0][0]); err != nil || e.Cause != causeHand || e.Group != res.Started[0][0] || e.slot != 2 {
			t.Errorf("the slot became %+v, %v, want the third of its group, by hand", e, err)
		}
		finish(g, outcomeSuccess, last.Started[0]...)
		g.expect("waiting", []string{"children 5 for "}, g.waiting())
	})
	t.Run("SlotSkipped", func(t *testing.T) {
		g := newStage(t, job{Name: "parent"}, job{Name: "child", ParentJob: "parent"})
		g.decide(stageNext, pendingRow{}, "parent", false, limits, "n1")
		res := g.decide(stageNext+1, pendingRow{}, "parent", false, limits, "n1", "n2")
		_, rows := g.pending()
		g.decide(stageNext+minute, rows[0], "parent", true, limits, "n1")
		g.expect("skipped", []string{"slot skipped 1: waited 1m0s for node n1, which runs 1 at once"}, g.skipped())
		finish(g, outcomeSuccess, res.Started[0]...)
		g.expect("waiting", nil, g.waiting()) // no child follows a part of the job
	})
	t.Run("Bind", func(t *testing.T) {
		g := newStage(t, job{Name: "a"})
		g.decide(stageNext, pendingRow{}, "a", false, limits, "n1")
		res := g.decide(stageNext, pendingRow{}, "a", false, limits, "n2")
		b := binding{Execution: res.Started[0][0], Incarnation: 7, To: target{"n1", 8}}
		if res := g.do(&command{Bind: []binding{b}, Limits: limits}); res.Accepted[0] {
			t.Error("an execution was bound to a full node")
		}
		b.To = target{"n2", 8}
		if res := g.do(&command{Bind: []binding{b}, Limits: map[string]int{"n2": 1}}); !res.Accepted[0] {
			t.Error("an execution was not bound to the new process of its own node")
		}
	})
}

// TestStore_NewLife: a cluster that is recovered, or started from a backup, knows nothing of what ran in its former life,
// whose later executions have no ids that come again.
func TestStore_NewLife(t *testing.T) {
	for name, renew := range map[string]func(*testing.T, *store) *store{
		"Recover": func(t *testing.T, s *store) *store {
			dir := filepath.Dir(s.path)
			if err := s.close(); err != nil {
				t.Fatal(err)
			}
			if err := recoverServer(dir, "next"); err != nil {
				t.Fatal(err)
			}
			return mustOpen(t, dir)
		},
		"Backup": func(t *testing.T, s *store) *store {
			dir := simTempDir(t)
			if err := s.snapshot(t.Context(), filepath.Join(dir, "belfry.db")); err != nil {
				t.Fatal(err)
			}
			s = mustOpen(t, dir)
			commit(t, s, &command{Now: stageNext + 7, Found: &foundation{ID: "next", Timezone: "UTC"}})
			return s
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := mustOpen(t, simTempDir(t))
			own, err := s.own()
			if err != nil {
				t.Fatal(err)
			}
			voters := entry{Index: 1, Term: 1, Kind: entryVoters, Data: encodeVoters([]server{{Name: "a", ID: own.ID}})}
			if err := s.writeMembership(membership{Cluster: "first", State: &hardState{Term: 1}, Entries: []entry{voters}}); err != nil {
				t.Fatal(err)
			}
			mustApply(t, s)
			g := &stage{t: t, s: s, jobs: map[string]jobVersion{}}
			g.put(jobPut{Job: job{Name: "a", Schedule: "@every 1m", Retries: 1}, Next: stageNext})
			g.put(jobPut{Job: job{Name: "b", Schedule: "@every 1m", Retries: 1, Delivery: deliveryAtLeastOnce}, Next: stageNext})
			old := append(g.tick("a", "n1"), g.tick("b", "n1")...)
			before := s.applied.Load()
			g.s = renew(t, s)
			mustApply(t, g.s)
			for _, id := range old {
				if e, err := g.s.execution(id); err != nil || e.Outcome != outcomeLost || e.Finished == 0 {
					t.Errorf("execution %d of the former life is %+v, %v, want lost", id, e, err)
				}
			}
			g.wantPending("retry b 2")
			if next := g.s.applied.Load(); next < before+lifeGap {
				t.Errorf("the log goes on at %d, after %d", next, before)
			}
			if id := g.tick("a", "n1")[0]; id < key(before+lifeGap, 0) {
				t.Errorf("execution %d may have been one of the former life", id)
			}
			if err := errors.Join(g.s.check(), g.s.close()); err != nil {
				t.Error(err)
			}
			g.s = mustOpen(t, filepath.Dir(g.s.path))
			if err := errors.Join(g.s.check(), g.s.close()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestApply_Request: a write is done once for its request id, and a repetition
// is answered what the first was.
func TestApply_Request(t *testing.T) {
	g := newStage(t, job{Name: "a"})
	run := &command{Request: "r", Answer: "kept", Consume: []decision{{Job: g.jobs["a"].ID, Rev: g.jobs["a"].Rev, Targets: []target{{"n1", 7}}}}}
	first := g.do(run)
	again := g.do(run)
	if diff := cmp.Diff(applied{Index: first.Index + 1, First: first.Index, Answer: "kept"}, again); diff != "" {
		t.Errorf("the repetition is answered (-want +got):\n%s", diff)
	}
	if row := g.row("a"); row.open != 1 {
		t.Errorf("%d runs, want 1", row.open)
	}
	// What was refused was not done, and may be tried again under its id.
	refused := &command{Request: "p", Put: []jobPut{{Job: job{Name: "b", ParentJob: "c"}}}}
	if res := g.do(refused); res.Err != errParent {
		t.Fatalf("%v, want %v", res.Err, errParent)
	}
	g.put(jobPut{Job: job{Name: "c"}, Next: stageNext})
	if res := g.do(refused); res.Err != nil || res.repeated() {
		t.Errorf("the second try is answered %+v, want it done", res)
	}
	g.do(&command{Trim: &trimming{Requests: first.Index}})
	if res := g.do(run); res.repeated() || len(res.Started[0]) != 1 {
		t.Errorf("a request that was trimmed is answered %+v, want it done", res)
	}
}

// TestApply_RunByHand: a run by hand needs the job as it was looked at, and
// enabled.
func TestApply_RunByHand(t *testing.T) {
	g := newStage(t, job{Name: "a"}, job{Name: "off", Disabled: true})
	a, off := g.jobs["a"], g.jobs["off"]
	for _, c := range []struct {
		name string
		v    jobVersion
		want error
	}{{"OK", a, nil}, {"ErrDisabled", off, errJobDisabled}, {"ErrChanged", jobVersion{a.ID, a.Rev + 1}, errConflict}, {"ErrNoJob", jobVersion{1, 1}, errNoJob}} {
		if res := g.do(&command{Consume: []decision{{Job: c.v.ID, Rev: c.v.Rev, Targets: []target{{"n1", 7}}}}}); res.Err != c.want {
			t.Errorf("%s: %v, want %v", c.name, res.Err, c.want)
		}
	}
}

// TestApply_Retry: a failure or an interruption is retried as often as the job
// says, on its node, later each time; nothing else is.
func TestApply_Retry(t *testing.T) {
	for outcome, want := range map[string][]string{
		outcomeFailed: {"retry a 2"}, outcomeInterrupted: {"retry a 2"}, outcomeSuccess: nil, outcomeKilled: nil, outcomeLost: nil, outcomeMissed: nil,
	} {
		g := newStage(t, job{Name: "a", Retries: 1})
		running := g.tick("a", "n1")
		g.end(outcome, running...)
		if got, _ := g.pending(); !cmp.Equal(want, got, cmpopts.EquateEmpty()) {
			t.Errorf("behind %s waits %q, want %q", outcome, got, want)
		}
	}
	g := newStage(t, job{Name: "a", Retries: 1, Delivery: deliveryAtLeastOnce})
	g.lose(g.tick("a", "n1")...)
	if got, _ := g.pending(); !cmp.Equal([]string{"retry a 2"}, got) {
		t.Errorf("behind a lost run that is to be delivered at least once waits %q, want a retry", got)
	}
	g = newStage(t, job{Name: "a", Retries: 1, RetryDelay: "10m"})
	g.end(outcomeFailed, g.tick("a", "n1")...)
	if _, rows := g.pending(); time.Duration(rows[0].Due-stageNext-5) != 10*time.Minute {
		t.Errorf("with a retry_delay of 10m the retry waits %v", time.Duration(rows[0].Due-stageNext-5))
	}
	g = newStage(t, job{Name: "a", Retries: 2})
	running := g.tick("a", "n1")
	var waits []time.Duration
	for range 3 {
		g.end(outcomeFailed, running...)
		if _, rows := g.pending(); len(rows) == 1 {
			waits = append(waits, time.Duration(rows[0].Due-stageNext-5))
			running = g.runPending(target{"n1", 7}).Started[0]
		}
	}
	if diff := cmp.Diff([]time.Duration{time.Second, 2 * time.Second}, waits); diff != "" {
		t.Errorf("retries wait (-want +got):\n%s", diff)
	}
	if row := g.row("a"); row.open != 0 || row.ErrorCount != 3 || row.Status != statusFailed {
		t.Errorf("open %d, %d failures, status %q, want 0, 3, failed", row.open, row.ErrorCount, row.Status)
	}
}

// TestApply_ParentOn: a child follows the ends that it names, after the last
// retry and once; nothing follows what was killed, or may have succeeded.
func TestApply_ParentOn(t *testing.T) {
	for _, test := range []struct {
		ends []string // of the two executions of a group
		want []string
	}{
		{[]string{outcomeSuccess, outcomeSuccess}, []string{"child any 1", "child default 1", "child success 1"}},
		{[]string{outcomeSuccess, outcomeFailed}, []string{"child any 1", "child failure 1"}},
		{[]string{outcomeInterrupted, outcomeFailed}, []string{"child any 1", "child failure 1"}},
		{[]string{outcomeFailed, outcomeKilled}, nil},
		{[]string{outcomeFailed, outcomeLost}, []string{"child any 1", "child failure 1"}},
		{[]string{outcomeSuccess, outcomeLost}, nil},
		{[]string{outcomeSuccess, outcomeMissed}, nil},
	} {
		for order := range 2 {
			g := newStage(t, job{Name: "a"}, job{Name: "any", ParentJob: "a", ParentOn: onAny}, job{Name: "default", ParentJob: "a"},
				job{Name: "failure", ParentJob: "a", ParentOn: onFailure}, job{Name: "success", ParentJob: "a", ParentOn: onSuccess})
			e := g.tick("a", "n1", "n2")
			g.end(test.ends[order], e[order])
			g.wantPending()
			g.end(test.ends[1-order], e[1-order])
			if _, rows := g.pending(); len(rows) > 0 {
				g.runPending()
			}
			g.wantPending(test.want...)
		}
	}
	t.Run("AfterRetries", func(t *testing.T) {
		g := newStage(t, job{Name: "a", Retries: 1}, job{Name: "failure", ParentJob: "a", ParentOn: onFailure})
		g.end(outcomeFailed, g.tick("a", "n1")...)
		g.wantPending("retry a 2")
		g.end(outcomeFailed, g.runPending(target{"n1", 7}).Started[0]...)
		g.wantPending("children a 1")
	})
	t.Run("RetrySkipped", func(t *testing.T) { // the group is over all the same
		g := newStage(t, job{Name: "a", Retries: 1, DisableAfter: 1}, job{Name: "failure", ParentJob: "a", ParentOn: onFailure})
		g.end(outcomeFailed, g.tick("a", "n1")...)
		_, rows := g.pending()
		g.do(&command{Now: stageNext + 9, Consume: []decision{{Pending: rows[0].ID, Job: rows[0].JobID, Rev: g.jobs["a"].Rev, Outcome: outcomeSkipped, Reason: "why"}}})
		g.wantPending("children a 1")
		if row := g.row("a"); !row.Disabled || row.open != 0 {
			t.Errorf("the job is disabled %t, %d open, want it disabled by its only run", row.Disabled, row.open)
		}
	})
}

// TestApply_DisableAfter: a job is disabled by as many failed groups in a row as
// it says, a success or its user begins the count anew, and a tick that is due
// then is skipped, for that reason.
func TestApply_DisableAfter(t *testing.T) {
	g := newStage(t, job{Name: "a", DisableAfter: 2, Metadata: map[string]string{"k": "v"},
		Notify: []notifyRule{{On: []string{eventFailed}, Webhook: "http://own"}}})
	run := func(outcome string) { t.Helper(); g.end(outcome, g.tick("a", "n1", "n2")...) }
	disabled := func(want bool) {
		t.Helper()
		if got := g.row("a").Disabled; got != want {
			t.Fatalf("disabled %t, want %t", got, want)
		}
	}
	for _, outcome := range []string{outcomeFailed, outcomeSuccess, outcomeFailed, outcomeKilled, outcomeLost, outcomeMissed} {
		run(outcome)
		disabled(false)
	}
	g.wantTold("failed a: webhook http://own", "failed a: webhook http://own")
	run(outcomeInterrupted)
	disabled(true)
	g.wantTold("failed a: webhook http://own") // that it is disabled
	row := g.row("a")
	if res := g.do(&command{Now: row.next, Consume: []decision{{Job: row.version.ID, Rev: row.version.Rev, Due: row.next, Next: row.next + 1, Targets: []target{{"n1", 7}}}}}); res.Accepted[0] {
		t.Error("a tick of the disabled job was accepted")
	}
	rows, _, _, err := g.s.audit(auditFilter{}, 0, 9)
	if err != nil {
		t.Fatal(err)
	}
	for r, err := range rows {
		if err != nil || r.Action != actionDisable || r.Job != "a" || r.Object != "2 runs in a row have failed" || r.Before != "{}" || r.After != `{"disabled":true}` {
			t.Errorf("the audit trail says %+v, %v", r, err)
		}
	}
	g.jobs["a"] = row.version
	enable := job{Name: "a", Schedule: "@every 1m", DisableAfter: 2}
	if res := g.put(jobPut{Base: row.version, Job: enable, Next: row.next + int64(time.Hour)}); res.Err != nil {
		t.Fatal(res.Err)
	}
	run(outcomeFailed)
	disabled(false)
	due := g.row("a").next
	e := g.tick("a", "n1")
	g.do(&command{Now: due + int64(time.Hour), Finish: []report{{result: result{Execution: e[0], Node: "n1", Incarnation: 7, Started: due, Finished: due, Outcome: outcomeFailed}}}})
	disabled(false) // a tick is due
	row = g.row("a")
	res := g.do(&command{Now: due + int64(time.Hour), Consume: []decision{{Job: row.version.ID, Rev: row.version.Rev, Due: row.next, Next: due + int64(2*time.Hour), Targets: []target{{"n1", 7}}}}})
	if !res.Accepted[0] || len(res.Started[0]) > 0 {
		t.Errorf("the tick that was due is %+v, want it accepted and not run", res)
	}
	disabled(true)
	ticks, n, err := g.s.ticks(row.version.ID, 0, math.MaxInt64, 0, 1)
	if err != nil || n == 0 || ticks[0].Outcome != outcomeSkipped || ticks[0].Reason != failingReason {
		t.Errorf("the tick is on record as %+v, %v", ticks, err)
	}
}

// TestApply_Barred: a decision to run that was made before its job was held, or
// its node drained, starts nothing, and its cause waits for another; what is
// forced, or is not held, runs.
func TestApply_Barred(t *testing.T) {
	g := newStage(t, job{Name: "a", Retries: 1, Metadata: map[string]string{"team": "web", "tier": "1"}}, job{Name: "child", ParentJob: "a"},
		job{Name: "b", Metadata: map[string]string{"team": "db"}})
	g.end(outcomeFailed, g.tick("a", "n1")...)
	_, rows := g.pending()
	decide := func(d decision) applied {
		t.Helper()
		d.Targets = []target{{"n1", 7}, {"n2", 7}}
		return g.do(&command{Now: stageNext + int64(time.Hour), Consume: []decision{d}})
	}
	row := g.row("a")
	tick := decision{Job: row.version.ID, Rev: row.version.Rev, Due: row.next, Next: row.next + int64(2*time.Hour)}
	retry := decision{Pending: rows[0].ID, Job: row.version.ID, Rev: row.version.Rev}
	hand := decision{Job: row.version.ID, Rev: row.version.Rev}
	set := func(kind, name string, r *rule) {
		t.Helper()
		if res := g.do(&command{SetRule: &ruleSet{kind, name, r}}); res.Err != nil || res.Released != (kind == ruleHold && r == nil) {
			t.Fatalf("%s %s: %v, released %t", kind, name, res.Err, res.Released)
		}
	}
	set(ruleHold, "1", &rule{Why: "w", By: "me", Metadata: map[string]string{"team": "web"}})
	for _, d := range []decision{tick, retry} {
		if res := decide(d); res.Accepted[0] || len(res.Started[0]) > 0 {
			t.Errorf("while the job is held %+v was %+v", d, res)
		}
	}
	if res := decide(hand); len(res.Started[0]) > 0 || res.Refused != "held by me since 0001-01-01T00:00:00Z: w" {
		t.Errorf("a run by hand while the job is held: %+v", res)
	}
	forced := hand
	if forced.Force = true; len(decide(forced).Started[0]) != 2 {
		t.Error("a run by force did not start")
	}
	other := g.row("b")
	if res := decide(decision{Job: other.version.ID, Rev: other.version.Rev}); len(res.Started[0]) != 2 {
		t.Errorf("another job while one is held: %+v", res)
	}
	set(ruleHold, "1", nil)
	set(ruleDrain, "n2", &rule{})
	for _, d := range []decision{tick, retry} {
		if res := decide(d); res.Accepted[0] || len(res.Started[0]) > 0 {
			t.Errorf("while a node is drained %+v was %+v", d, res)
		}
	}
	if res := decide(hand); res.Err != errConflict {
		t.Errorf("a run by hand on a drained node: %+v", res)
	}
	set(ruleDrain, "n2", nil)
	for _, d := range []decision{tick, retry, hand} {
		if res := decide(d); !res.Accepted[0] || len(res.Started[0]) != 2 {
			t.Errorf("when all is over %+v was %+v", d, res)
		}
	}
	if res := g.do(&command{SetRule: &ruleSet{ruleDrain, "n2", nil}}); res.Err != errNoRule {
		t.Errorf("a rule that is not there was taken back: %v", res.Err)
	}
	for i := range rulesMax {
		set(ruleHold, fmt.Sprint(i), &rule{})
	}
	if res := g.do(&command{SetRule: &ruleSet{ruleHold, "more", &rule{}}}); res.Err != errRules {
		t.Errorf("one more hold than there may be: %v", res.Err)
	}
	if err := g.s.loadSettings(); err != nil || len(g.s.settings.rules[ruleHold]) != rulesMax { // as a start does
		t.Errorf("%v: there are %d holds, want %d", err, len(g.s.settings.rules[ruleHold]), rulesMax)
	}
}

// TestApply_Params: what a run by hand was given is that of its retries.
func TestApply_Params(t *testing.T) {
	g := newStage(t, job{Name: "a", Retries: 1})
	params := map[string]string{"date": "2026-11-01"}
	res := g.do(&command{Request: "r", Consume: []decision{{Job: g.jobs["a"].ID, Rev: g.jobs["a"].Rev, Targets: []target{{"n1", 7}, {"n2", 7}}, Params: params}}})
	g.end(outcomeFailed, res.Started[0][1])
	retry := g.runPending(target{"n2", 7}).Started[0]
	for _, id := range append(res.Started[0], retry...) {
		if e, err := g.s.execution(id); err != nil || !maps.Equal(e.Params, params) {
			t.Errorf("execution %d has %v, %v, want %v", id, e.Params, err, params)
		}
	}
	e, err := g.s.execution(g.tick("a", "n1")[0])
	if err != nil || e.Params != nil {
		t.Errorf("a tick has %v, %v, want none", e.Params, err)
	}
}

// TestRetryDelay: the wait doubles, from what the job says to what the job says.
func TestRetryDelay(t *testing.T) {
	for _, c := range []struct {
		first, longest string
		attempt        int
		want           time.Duration
	}{
		{"", "", 1, time.Second},
		{"", "", 2, 2 * time.Second},
		{"", "", 6, 32 * time.Second},
		{"", "", 7, time.Minute},
		{"", "", retriesMax, time.Minute},
		{"10s", "", 1, 10 * time.Second},
		{"10s", "", retriesMax, 10 * time.Second},
		{"10s", "15m", 4, 80 * time.Second},
		{"10s", "15m", retriesMax, 15 * time.Minute},
		{"", "3s", 3, 3 * time.Second},
		{"", "168h", retriesMax, 168 * time.Hour},
	} {
		if got := retryDelay(c.first, c.longest, c.attempt); got != c.want {
			t.Errorf("retryDelay(%q, %q, %d) = %v, want %v", c.first, c.longest, c.attempt, got, c.want)
		}
	}
}

// TestApply_Pending: a pending row is consumed once, by a run or by a skip, and
// not by a decision for a job that has changed.
func TestApply_Pending(t *testing.T) {
	g := newStage(t, job{Name: "a", Retries: 1})
	g.end(outcomeFailed, g.tick("a", "n1")...)
	_, rows := g.pending()
	d := decision{Pending: rows[0].ID, Job: rows[0].JobID, Rev: g.jobs["a"].Rev + 1, Targets: []target{{"n1", 7}}}
	if res := g.do(&command{Consume: []decision{d}}); res.Accepted[0] || len(res.Started[0]) != 0 {
		t.Errorf("a decision for another revision: %+v, want it not accepted", res)
	}
	d.Rev--
	res := g.do(&command{Consume: []decision{d, d}})
	if diff := cmp.Diff([]bool{true, true}, res.Accepted); diff != "" || len(res.Started[0]) != 1 || len(res.Started[1]) != 0 {
		t.Errorf("decided twice: %+v, want one run, and nothing to do again", res)
	}
	if row := g.row("a"); row.open != 1 {
		t.Errorf("open is %d, want 1", row.open)
	}
}

// TestApply_Follow: the children start when the last attempt on every node has
// succeeded, in whatever order and in however many commands the results come.
func TestApply_Follow(t *testing.T) {
	setup := func(t *testing.T) (*stage, []int64) {
		g := newStage(t, job{Name: "a", Retries: 1}, job{Name: "child", ParentJob: "a"})
		return g, g.tick("a", "n1", "n2")
	}
	child := "children a 1"
	t.Run("Expand", func(t *testing.T) {
		g, e := setup(t)
		g.end(outcomeSuccess, e...)
		_, rows := g.pending()
		expand := &command{Consume: []decision{{Pending: rows[0].ID, Job: rows[0].JobID}}}
		if res := g.do(expand); !res.Accepted[0] || res.Armed == 0 {
			t.Errorf("the row of the children is %+v, want it consumed and one row armed", res)
		}
		g.wantPending("child child 1")
		g.do(expand)
		g.wantPending("child child 1")
	})
	t.Run("OneByOne", func(t *testing.T) {
		g, e := setup(t)
		g.end(outcomeSuccess, e[1])
		g.wantPending()
		g.end(outcomeSuccess, e[0])
		g.wantPending(child)
	})
	t.Run("AtOnce", func(t *testing.T) {
		g, e := setup(t)
		g.end(outcomeSuccess, e...)
		g.wantPending(child)
	})
	t.Run("ReportedTwice", func(t *testing.T) {
		g, e := setup(t)
		g.end(outcomeSuccess, e[0], e[1], e[0], e[1])
		g.end(outcomeSuccess, e...)
		g.wantPending(child)
		if row := g.row("a"); row.SuccessCount != 2 {
			t.Errorf("%d successes, want 2", row.SuccessCount)
		}
	})
	t.Run("BehindRetry", func(t *testing.T) {
		g, e := setup(t)
		g.end(outcomeFailed, e[0])
		g.end(outcomeSuccess, e[1])
		g.wantPending("retry a 2")
		g.end(outcomeSuccess, g.runPending(target{"n1", 7}).Started[0]...)
		g.wantPending(child)
		if row := g.row("a"); row.Status != statusPartial {
			t.Errorf("status %q, want %q", row.Status, statusPartial)
		}
	})
	t.Run("NotBehindSkippedRetry", func(t *testing.T) {
		g, e := setup(t)
		g.end(outcomeFailed, e[0])
		g.end(outcomeSuccess, e[1])
		g.runPending()
		g.wantPending()
	})
	t.Run("NotBehindLost", func(t *testing.T) {
		g, e := setup(t)
		g.lose(e[0])
		g.end(outcomeSuccess, e[1])
		g.wantPending()
		g.end(outcomeSuccess, e[0]) // it is counted, and nothing follows from it
		g.wantPending()
		if row := g.row("a"); row.SuccessCount != 2 || row.open != 0 {
			t.Errorf("%d successes, %d open, want 2 and 0", row.SuccessCount, row.open)
		}
	})
	t.Run("BehindOneThatWasLost", func(t *testing.T) {
		g, e := setup(t)
		g.lose(e[0])
		g.end(outcomeSuccess, e[0], e[1]) // one of them was not lost
		g.wantPending(child)
	})
}

// TestApply_Contradiction: what does not fit the state is refused, for good, on
// every server, and does not keep one from starting.
func TestApply_Contradiction(t *testing.T) {
	g := newStage(t, job{Name: "a"})
	if res := g.do(&command{PutToken: &tokenPut{Token: token{Accessor: "x"}}}); !errors.As(res.Err, new(refusal)) {
		t.Errorf("a token without a hash: %v, want a refusal", res.Err)
	}
	g.row("a")
}

// TestApply_Ephemeral: the success of its group deletes an ephemeral job, and
// only that; one that others depend on stays.
func TestApply_Ephemeral(t *testing.T) {
	g := newStage(t, job{Name: "a", Ephemeral: true}, job{Name: "parent", Ephemeral: true}, job{Name: "child", ParentJob: "parent"})
	g.end(outcomeFailed, g.tick("a", "n1")...)
	g.row("a")
	if _, n, err := listJobs(g.s, jobFilter{}, 0, 9); n != 3 || err != nil {
		t.Errorf("%d jobs in the list, %v, want 3", n, err)
	}
	g.end(outcomeSuccess, g.tick("a", "n1")...)
	if rows, n, err := listJobs(g.s, jobFilter{}, 0, 9); n != 2 || len(rows) != 2 || err != nil {
		t.Errorf("%d jobs are counted and %d listed, %v, want 2: a list must not outlive what it lists", n, len(rows), err)
	}
	if _, err := g.s.job("a"); err != errNoJob {
		t.Errorf("the ephemeral job that succeeded: %v, want %v", err, errNoJob)
	}
	g.end(outcomeSuccess, g.tick("parent", "n1")...)
	g.row("parent")
	g.wantPending("children parent 1")
}

// TestApply_RestoreTwice: a restore that has been made visible is refused when
// it comes again, and is no reason for apply to fail.
func TestApply_RestoreTwice(t *testing.T) {
	g := newStage(t)
	staged := g.do(&command{Stage: &staging{Jobs: []stagedJob{{Job: job{Name: "a", Schedule: "@manually"}, Next: never}}}})
	c := &command{Restore: &restoring{Restore: int64(staged.Index), Jobs: 1}}
	if res := g.do(c); res.Err != nil {
		t.Fatal(res.Err)
	}
	if res := g.do(c); !errors.Is(res.Err, errBrokenOff) {
		t.Errorf("the second time is answered %v, want %v", res.Err, errBrokenOff)
	}
}

// TestApply_Lost: what is lost is neither success nor failure, and nothing
// follows; a result that comes after all finishes and counts it, once.
func TestApply_Lost(t *testing.T) {
	g := newStage(t, job{Name: "a", Retries: 3, Concurrency: concurrencyForbid})
	e := g.tick("a", "n1")
	g.lose(e...)
	if row := g.row("a"); row.open != 0 || row.SuccessCount+row.ErrorCount != 0 || row.Status != "" {
		t.Errorf("a lost run: %d open, %d successes, %d failures, status %q, want nothing", row.open, row.SuccessCount, row.ErrorCount, row.Status)
	}
	g.end(outcomeFailed, e...)
	g.end(outcomeSuccess, e...)
	g.wantPending()
	row, err := g.s.execution(e[0])
	if err != nil || row.Outcome != outcomeFailed || g.row("a").ErrorCount != 1 || len(row.Output) > 0 {
		t.Errorf("outcome %q, %v, %d failures, output %q, want failed, 1, none", row.Outcome, err, g.row("a").ErrorCount, row.Output)
	}
}

// TestApply_Report: a result counts if it is of the process of the node that the
// execution is with.
func TestApply_Report(t *testing.T) {
	g := newStage(t, job{Name: "a"})
	e := g.tick("a", "n1", "n2")
	for _, c := range []struct {
		execution   int64
		node        string
		incarnation uint64
		want        string
	}{
		{e[0], "n2", 7, ""},
		{e[0], "n1", 8, ""},
		{e[0], "", 7, ""},
		{e[0], "n1", 7, outcomeFailed},
		{e[1], "n1", 7, ""},
		{e[1], "n2", 7, outcomeFailed},
	} {
		g.do(&command{Now: stageNext + 9, Finish: []report{{result: result{Execution: c.execution, Node: c.node, Incarnation: c.incarnation, Started: stageNext, Finished: stageNext + 5, Outcome: outcomeFailed}}}})
		if row, err := g.s.execution(c.execution); err != nil || row.Outcome != c.want {
			t.Errorf("%+v: outcome %q, %v", c, row.Outcome, err)
		}
	}
}

// TestStore_Unstorable: a term that SQLite cannot hold is not written as another
// one, with which the server could never start again.
func TestStore_Unstorable(t *testing.T) {
	s := newStore(t)
	if err := s.persist(&hardState{Term: 1 << 63}, nil); err == nil {
		t.Error("term 2^63 was written")
	}
	if disk, err := s.saved(); err != nil || disk.State.Term != 0 {
		t.Errorf("term %d is read, %v; want 0", disk.State.Term, err)
	}
}

// TestApply_Close: an execution is closed only if it is unfinished and still
// with the process that was asked, and says why in its output.
func TestApply_Close(t *testing.T) {
	g := newStage(t, job{Name: "a"})
	e := g.tick("a", "n1", "n2", "n3")
	g.end(outcomeSuccess, e[2])
	g.do(&command{Now: stageNext + 9, Finish: []report{closedAt(stageNext+9, e[0], 7, outcomeInterrupted), closedAt(stageNext+9, e[1], 8, outcomeInterrupted),
		closedAt(stageNext+9, e[2], 7, outcomeInterrupted), closedAt(stageNext+9, 12345, 7, outcomeLost)}})
	var got []string
	for _, id := range e {
		row, err := g.s.execution(id)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, row.Outcome+" "+string(row.Output))
	}
	if diff := cmp.Diff([]string{"interrupted why\n", " ", "success "}, got); diff != "" {
		t.Errorf("outcomes and outputs (-want +got):\n%s", diff)
	}
}

// TestApply_Reset: a job that a wrong clock has carried away comes back, on
// record, if it is still as it was found.
func TestApply_Reset(t *testing.T) {
	g := newStage(t, job{Name: "a"})
	g.tick("a", "n1")
	v := g.jobs["a"]
	now := stageNext - int64(30*time.Minute)
	r := reset{Job: v.ID, Rev: v.Rev, Fired: stageNext, Next: now + int64(time.Minute), Reason: "a wrong clock"}
	for name, edit := range map[string]func(*reset){"Fired": func(r *reset) { r.Fired++ }, "Rev": func(r *reset) { r.Rev++ }, "Job": func(r *reset) { r.Job++ }} {
		other := r
		edit(&other)
		if g.do(&command{Now: now, Reset: []reset{other}}); g.row("a").fired != stageNext {
			t.Errorf("a reset of another %s was done", name)
		}
	}
	g.do(&command{Now: now, Reset: []reset{r}})
	if row := g.row("a"); row.fired != now || row.next != r.Next {
		t.Errorf("fired %d, next %d, want %d and %d", row.fired, row.next, now, r.Next)
	}
	late := jobPut{Base: v, Job: job{Name: "a", Schedule: "@hourly"}, Next: stageNext + int64(time.Hour)}
	if res := g.do(&command{Now: now, Put: []jobPut{late}}); res.Err != errConflict || g.row("a").next != r.Next {
		t.Errorf("a change that was computed before the reset: %v, next %d, want %v and %d", res.Err, g.row("a").next, errConflict, r.Next)
	}
	if diff := cmp.Diff([]string{"clock skipped 1: a wrong clock"}, g.skipped()); diff != "" {
		t.Errorf("on record (-want +got):\n%s", diff)
	}
}

// TestStore_AuditTimes: a search by time finds what was done in it although a clock
// was wrong before.
func TestStore_AuditTimes(t *testing.T) {
	s := newStore(t)
	for i, ahead := range []time.Duration{0, time.Hour, time.Hour, 0, 0} { // the second and third by a clock ahead of its time
		at := testStart + int64(time.Duration(i)*time.Minute+ahead)
		commit(t, s, &command{Now: at, Audit: &audited{Action: fmt.Sprint(i)}})
	}
	rows, total, _, err := s.audit(auditFilter{From: testStart, To: testStart + int64(30*time.Minute)}, 0, 9)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for r, err := range rows {
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, r.Action)
	}
	if diff := cmp.Diff([]string{"4", "3", "0"}, found); diff != "" || total != 3 {
		t.Errorf("%d rows (-want +got):\n%s", total, diff)
	}
}

// TestReader_AtOnce: what is read at once is of one moment, whatever is written
// meanwhile.
func TestReader_AtOnce(t *testing.T) {
	s := newStore(t)
	fill(t, s, 1)
	err := s.clients.atOnce(func(r *reader) error {
		for range 2 {
			if n, err := r.countJobs(); n != 1 || err != nil {
				t.Errorf("%d jobs, %v, want the one that was there", n, err)
			}
			name := fmt.Sprint("job-", s.applied.Load())
			commit(t, s, &command{Now: testStart, Put: []jobPut{{Job: job{Name: name, Schedule: "@manually"}, Next: never}}})
		}
		return nil
	})
	if n, _ := s.clients.countJobs(); err != nil || n != 3 {
		t.Errorf("%d jobs, %v, want 3", n, err)
	}
}

// TestApply_Trim: the oldest finished executions go, and their ticks are
// counted by the day; groups that are not over are spared, and are not asked
// for again.
func TestApply_Trim(t *testing.T) {
	g := newStage(t, job{Name: "a", Retries: 1})
	for range 30 {
		g.end(outcomeSuccess, g.tick("a", "n1")...)
	}
	tr, err := g.s.trimmable(retention{executions: 5, auditBytes: math.MaxInt64}, true)
	ok := !tr.empty()
	if err != nil || !ok {
		t.Fatalf("trimmable: %v, %v, want something", ok, err)
	}
	g.do(&command{Trim: &tr})
	var left, counted int
	if err := errors.Join(g.s.view("SELECT count(*) FROM executions", nil, &left), g.s.view("SELECT sum(ran + late) FROM tick_days", nil, &counted)); err != nil || left != 5 || counted != 25 {
		t.Errorf("%d executions left, %d counted by the day, %v, want 5 and 25", left, counted, err)
	}
	nodes := make([]string, 40)
	for i := range nodes {
		nodes[i] = fmt.Sprint("n", i)
	}
	open := g.tick("a", nodes...)
	g.end(outcomeSuccess, open[1:]...) // the group is not over
	if tr, err = g.s.trimmable(retention{executions: 5, auditBytes: math.MaxInt64}, true); err != nil || tr.empty() {
		t.Fatalf("trimmable: %v, want those of older groups", err)
	}
	g.do(&command{Trim: &tr})
	if tr, err = g.s.trimmable(retention{executions: 5, auditBytes: math.MaxInt64}, true); err != nil || !tr.empty() {
		t.Errorf("trimmable: %+v, %v, want nothing as long as the group is not over", tr, err)
	}
	g.end(outcomeSuccess, open[0])
	if tr, err = g.s.trimmable(retention{executions: 5, auditBytes: math.MaxInt64}, true); err != nil || tr.empty() {
		t.Errorf("trimmable: %+v, %v, want those of the group that is over", tr, err)
	}
}

// TestStore_TickCounters: the counters of a job's ticks never fall, whatever is trimmed, and a tick whose order did not
// reach its node counts as missed alone.
func TestStore_TickCounters(t *testing.T) {
	g := newStage(t, job{Name: "a"})
	for range 30 {
		g.end(outcomeSuccess, g.tick("a", "n1")...)
	}
	g.end(outcomeMissed, g.tick("a", "n1")...)
	tr, err := g.s.trimmable(retention{executions: 5, auditBytes: math.MaxInt64}, true)
	if err != nil {
		t.Fatal(err)
	}
	g.do(&command{Trim: &tr})
	g.do(&command{Trim: &trimming{Day: math.MaxInt64}})
	list, err := g.s.jobNumbers(nil, 10)
	if err != nil || len(list) != 1 || list[0].Ran != 30 || list[0].Missed != 1 {
		t.Errorf("%+v, %v, want 30 that ran and 1 that was missed", list, err)
	}
	why := &g.s.stats.whys[slices.Index(tickWhys, "no_node")]
	if ran, missed := g.s.stats.ticks[0].Load(), why.Load(); ran != 30 || missed != 1 {
		t.Errorf("the server counts %d that ran, and %d without a node, want 30 and 1", ran, missed)
	}
}

// TestStore_OpenExecution: of a job the oldest execution that has not ended is
// found, and none if only a retry is to come.
func TestStore_OpenExecution(t *testing.T) {
	g := newStage(t, job{Name: "a", Concurrency: concurrencyForbid, Retries: 1}, job{Name: "b"})
	check := func(want int64) {
		t.Helper()
		e, err := g.s.openExecution(g.jobs["a"].ID)
		if errors.Is(err, errNoExecution) != (want == 0) || want != 0 && err != nil || e.ID != want {
			t.Errorf("execution %d, %v, want %d", e.ID, err, want)
		}
	}
	g.tick("b", "n1") // older than all of them
	check(0)
	for range 5 {
		g.end(outcomeSuccess, g.tick("a", "n1", "n2")...)
	}
	check(0)
	e := g.tick("a", "n1", "n2", "n3", "n4")
	check(e[0])
	g.end(outcomeSuccess, e[0], e[2])
	check(e[1])
	g.end(outcomeFailed, e[1])
	check(e[3])
	retry := g.runPending(target{"n2", 7}).Started[0][0]
	check(e[3])
	g.end(outcomeFailed, e[3])
	check(retry)
	g.end(outcomeFailed, retry)
	check(0)
	g.wantPending("retry a 2")
}

// TestApply_TrimDeleted: deleted jobs go many at once, or slice by slice if
// much is kept of them.
func TestApply_TrimDeleted(t *testing.T) {
	g := newStage(t, job{Name: "large"}, job{Name: "b"}, job{Name: "c"}, job{Name: "runs"})
	nodes := make([]string, sliceRows/2)
	for i := range nodes {
		nodes[i] = fmt.Sprint("n", i)
	}
	for range 3 {
		g.end(outcomeSuccess, g.tick("large", nodes...)...)
	}
	g.end(outcomeSuccess, g.tick("b", "n1", "n2")...)
	running := g.tick("runs", "n1")
	for _, name := range []string{"large", "b", "c", "runs"} {
		v := g.jobs[name]
		if res := g.do(&command{Delete: &v}); res.Err != nil {
			t.Fatal(res.Err)
		}
	}
	for i, want := range [][2]int{{4, sliceRows/2 + 3}, {1, 1}, {1, 1}} { // jobs and executions that are left
		if i == 2 {
			g.end(outcomeSuccess, running...)
			want = [2]int{}
		}
		tr, err := g.s.trimmable(retention{executions: 5, auditBytes: math.MaxInt64}, true)
		if err != nil {
			t.Fatal(err)
		}
		g.do(&command{Trim: &tr})
		var got [2]int
		if err := g.s.view("SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM executions)", nil, &got[0], &got[1]); err != nil || got != want {
			t.Errorf("after %d trims %d jobs and %d executions are left, %v, want %v", i+1, got[0], got[1], err, want)
		}
	}
}

// TestApply_TrimOrder: which rows go first does not depend on the order in which
// SQLite happens to find them.
func TestApply_TrimOrder(t *testing.T) {
	var dumps [2]string
	for i := range dumps {
		g := newStage(t)
		if err := g.s.exec(fmt.Sprint("PRAGMA reverse_unordered_selects = ", i)); err != nil {
			t.Fatal(err)
		}
		var staged []stagedJob
		for j := range stagedRows + 100 {
			staged = append(staged, stagedJob{Job: job{Name: fmt.Sprint("job-", j*37%100, "-", j), Schedule: "@manually"}, Next: never})
		}
		res := g.do(&command{Stage: &staging{Jobs: staged}})
		err := g.s.exec("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) INSERT INTO tick_days SELECT i * 37 % 1009, i, 1, 0, 0, 0 FROM n", sliceRows+100)
		if err != nil {
			t.Fatal(err)
		}
		g.do(&command{Trim: &trimming{Restore: int64(res.Index), Day: math.MaxInt64}})
		var jobs, days int
		if err := g.s.view("SELECT (SELECT count(*) FROM staged), (SELECT count(*) FROM tick_days)", nil, &jobs, &days); err != nil || jobs != 100 || days != 100 {
			t.Errorf("%d staged jobs and %d counts are left, %v, want 100 of each", jobs, days, err)
		}
		dumps[i] = mustDump(t, g.s)
	}
	if diff := cmp.Diff(dumps[0], dumps[1]); diff != "" {
		t.Errorf("the state depends on the order of rows:\n%s", diff)
	}
}

// TestStore_PageEarly: after a change a page by name is read without a list of all
// jobs, and when many pages are read, from one; both are the same.
func TestStore_PageEarly(t *testing.T) {
	s := newStore(t)
	fill(t, s, 30)
	for _, desc := range []bool{false, true} {
		var pages [listPages + 10][]string
		for i := range pages {
			for _, bounds := range [][2]int{{0, 5}, {20, 1000}, {30, 40}, {5, 2}} {
				rows, total, err := listJobs(s, jobFilter{Desc: desc}, bounds[0], bounds[1])
				if err != nil || total != 30 || len(rows) != max(0, min(30, bounds[1])-bounds[0]) {
					t.Fatalf("page %d %v: %d of %d rows, %v", i, bounds, len(rows), total, err)
				}
				for _, row := range rows {
					pages[i] = append(pages[i], string(row))
				}
			}
			if made := len(s.lists.byKey) > 0; i == 0 && made || i == len(pages)-1 && !made {
				t.Errorf("page %d: a list was made: %t", i, made)
			}
			if diff := cmp.Diff(pages[0], pages[i]); diff != "" {
				t.Errorf("page %d differs (-first +this):\n%s", i, diff)
			}
		}
		commit(t, s, &command{Actor: actorAnonymous, Now: testStart, Put: []jobPut{{Job: job{Name: "zz", Schedule: "@manually"}, Next: never}}})
		row, err := s.job("zz")
		if err != nil {
			t.Fatal(err)
		}
		commit(t, s, &command{Actor: actorAnonymous, Now: testStart, Delete: &row.version})
		s.lists.byKey = nil
	}
}

// TestStore_ListsBound: searches that find nothing do not fill the memory.
func TestStore_ListsBound(t *testing.T) {
	var l jobLists
	key := strings.Repeat("k", 8_000)
	for i := range 20_000 {
		l.keep(key+fmt.Sprint(i), &jobList{})
	}
	if n := len(l.byKey); n > 8*listIDsMax/len(key) {
		t.Errorf("%d empty lists are held, under keys of %d bytes", n, len(key))
	}
	kept := l.size
	l.keep("again", &jobList{ids: make([]int64, 10)})
	l.keep("again", &jobList{})
	if want := kept + (&jobList{}).cost("again"); l.size != want {
		t.Errorf("lists cost %d, want %d", l.size, want)
	}
}

// TestStore_TickNeverStarted: a tick that was decided to run, and whose order
// no node took, counts as missed, one by one and by day.
func TestStore_TickNeverStarted(t *testing.T) {
	for _, c := range []struct {
		name  string
		nodes []string
		lost  int // so many of the executions never started
		want  string
	}{
		{"All", []string{"n1", "n2"}, 2, outcomeMissed},
		{"First", []string{"n1", "n2"}, 1, outcomeRan},
		{"One", []string{"n1"}, 1, outcomeMissed},
		{"None", []string{"n1"}, 0, outcomeRan},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newStage(t, job{Name: "a"})
			e := g.tick("a", c.nodes...)
			var closed []report
			for _, id := range e[:c.lost] {
				closed = append(closed, closedAt(stageNext+5, id, 7, outcomeMissed))
			}
			g.do(&command{Now: stageNext + 5, Finish: closed})
			g.end(outcomeSuccess, e[c.lost:]...)
			id := g.jobs["a"].ID
			list, _, err := g.s.ticks(id, 0, math.MaxInt64, 0, 10)
			if err != nil || len(list) != 1 || list[0].Outcome != c.want || (list[0].Reason == "why") != (c.lost > 0) {
				t.Errorf("ticks: %+v, %v, want one %s", list, err, c.want)
			}
			single, _, err := g.s.tickCounts(id, 0, math.MaxInt64)
			if missed := c.want == outcomeMissed; err != nil || (single.Missed == 1) != missed || (single.Ran == 1) == missed {
				t.Errorf("counted %+v, %v, want one %s", single, err, c.want)
			}
			version := g.jobs["a"]
			g.do(&command{Now: stageNext + 9, DeleteExecutions: &version})
			_, days, err := g.s.tickCounts(id, 0, math.MaxInt64)
			if err != nil || len(days) != 1 {
				t.Fatal(days, err)
			}
			single.Day = days[0].Day
			if diff := cmp.Diff(single, days[0]); diff != "" {
				t.Errorf("the day counts (-before +after):\n%s", diff)
			}
		})
	}
}

// TestStore_WALGone: a database whose write-ahead log was deleted after a crash is
// refused, and accepted when somebody says so; one that was closed needs none.
func TestStore_WALGone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	marker, wal := filepath.Join(data, "belfry.db-open"), filepath.Join(data, "belfry.db-wal")
	p := startServer(t, dir)
	p.must("POST", "/v1/jobs", shellJob("a", "@manually", "true"), nil)
	if _, err := os.Stat(marker); err != nil {
		t.Fatal(err)
	}
	p.kill()
	refused := func() {
		t.Helper()
		if st, err := openStore(data); !errors.Is(err, errNoWAL) {
			if err == nil {
				st.close()
			}
			t.Fatalf("opened without its log: %v, want %v", err, errNoWAL)
		}
	}
	text, err := os.ReadFile(wal)
	if err != nil {
		t.Fatal(err)
	}
	for _, gone := range []func() error{func() error { return os.Remove(wal) }, func() error { return os.WriteFile(wal, nil, 0o600) }} {
		if err := gone(); err != nil {
			t.Fatal(err)
		}
		refused()
		refused() // to be refused changes nothing
	}
	if err := os.WriteFile(wal, text, 0o600); err != nil {
		t.Fatal(err)
	}
	has := func(what string) {
		t.Helper()
		st, err := openStore(data)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if _, err := st.job("a"); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if err := st.close(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(marker); !os.IsNotExist(err) {
			t.Errorf("%s: closed, and the marker is there: %v", what, err)
		}
	}
	has("the log is back")
	if err := os.Remove(wal); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	has("closed before")
	p = startServer(t, dir)
	p.kill()
	if err := execFile(t.Context(), filepath.Join(data, "belfry.db"), "PRAGMA wal_checkpoint(TRUNCATE)"); err != nil { // as sqlite3 does when it ends
		t.Fatal(err)
	}
	refused()
	if err := os.Remove(marker); err != nil {
		t.Fatal(err)
	}
	has("accepted as it is")
}

// TestStore_Unreadable: a server of which some pages are damaged says so, though
// others can be read, from the first read on that meets one.
func TestStore_Unreadable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := newTestServer(t, dir, 7)
		for i := range 100 {
			s.do("POST", "/v1/jobs", fmt.Sprintf(`{"name": "job%d", "schedule": "@manually", "metadata": {"x": "%s"}}`, i, strings.Repeat("x", 10_000)))
		}
		st := s.api.store
		if err := st.readable(time.Now()); err != nil {
			t.Fatal(err)
		}
		s.stop()
		path := filepath.Join(dir, "belfry.db")
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		damaged := bytes.ReplaceAll(whole, []byte(strings.Repeat("x", 1_000)), bytes.Repeat([]byte{0xff}, 1_000))
		for page := 1; page < len(damaged)/4096; page++ {
			if at := damaged[page*4096:]; bytes.Count(at[:4096], []byte{0xff}) > 3_000 { // which is no page of the rows themselves
				copy(at[:8], "\xff\xff\xff\xff\xff\xff\xff\xff") // where the next page of a row stands
			}
		}
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		st, err = openStore(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer st.close()
		if err := st.readable(time.Now()); err != nil {
			t.Fatalf("the first pages are whole: %v", err)
		}
		if _, err := st.job("job50"); err == nil {
			t.Fatal("a damaged row was read")
		}
		if err := st.readable(time.Now()); err == nil {
			t.Error("a read has failed, and the store says that it reads")
		}
		wait(failedReadAge)
		if err := st.readable(time.Now()); err != nil {
			t.Errorf("nobody has met damage for a while: %v", err)
		}
	})
}

// dump returns a digest of each replicated table, one line a table: equal
// states have equal dumps.
func (s *store) dump() (string, error) {
	var out strings.Builder
	for _, table := range replicated {
		rows, err := s.pool.Query("SELECT * FROM " + table + " ORDER BY 1, 2")
		if err != nil {
			return "", err
		}
		sum, n, err := digestRows(rows)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&out, "%-10s %8d rows %016x\n", table, n, sum)
	}
	return out.String(), nil
}

func digestRows(rows *sql.Rows) (sum uint64, n int, err error) {
	columns, err := rows.Columns()
	if err != nil {
		return 0, 0, err
	}
	values := make([]any, len(columns))
	dest := make([]any, len(columns))
	for i := range values {
		dest[i] = &values[i]
	}
	h := fnv.New64a()
	err = eachRow(rows, nil, func(scan scanner) error {
		n++
		if err := scan(dest...); err != nil {
			return err
		}
		fmt.Fprintf(h, "%v\n", values)
		return nil
	})
	return h.Sum64(), n, err
}

// check verifies the whole database: SQLite's own structure, and the
// invariants of the state. It reads everything and is meant for tests and for
// an operator in doubt.
func (s *store) check() error {
	var verdict string
	if err := s.pool.QueryRow("PRAGMA integrity_check").Scan(&verdict); err != nil {
		return err
	}
	if verdict != "ok" {
		return fmt.Errorf("the database is damaged: %s", verdict)
	}
	errs := []error{s.docs.check(s)}
	for _, c := range checks {
		var at int64
		err := s.pool.QueryRow(c.query + " LIMIT 1").Scan(&at)
		if err == nil {
			err = fmt.Errorf("invariant broken at %d: %s", at, c.rule)
		}
		if !errors.Is(err, sql.ErrNoRows) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// check compares what it holds with the tables.
func (d *jobDocs) check(s *store) error {
	d.mu.Lock()
	held, ids := d.byID, sortedKeys(d.byID)
	d.byID, d.byName, d.size = nil, nil, 0
	d.mu.Unlock()
	docs, err := d.read(s, ids)
	if err != nil {
		return err
	}
	if len(docs) != len(ids) {
		return fmt.Errorf("%d jobs are deleted and still held", len(ids)-len(docs))
	}
	for i, id := range ids {
		if !bytes.Equal(held[id].doc, docs[i]) {
			return fmt.Errorf("job %d is held as it was: %s, and is %s", id, held[id].doc, docs[i])
		}
	}
	return nil
}

// checks are the invariants of the state, each as a query for what breaks it.
var checks = []struct{ rule, query string }{
	{"a job that is not deleted has a state, and no other has", "SELECT id FROM jobs WHERE deleted = 0 AND id NOT IN (SELECT job FROM job_state) UNION ALL SELECT job FROM job_state WHERE job NOT IN (SELECT id FROM jobs WHERE deleted = 0)"},
	{"open counts unfinished executions and pending rows of their groups", "SELECT job FROM job_state s WHERE open <> (SELECT count(*) FROM executions e WHERE e.job = s.job AND finished = 0) + (SELECT count(*) FROM pending p WHERE p.job = s.job AND grp <> 0)"},
	{"kept counts finished executions", "SELECT job FROM job_state s WHERE kept <> (SELECT count(*) FROM executions e WHERE e.job = s.job AND finished <> 0)"},
	{"spared executions are among the kept", "SELECT job FROM job_state s WHERE spared > (SELECT count(*) FROM executions e WHERE e.job = s.job AND outcome NOT IN ('', 'success'))"},
	{"no more notices wait than may", fmt.Sprintf("SELECT count(*) FROM notices HAVING count(*) > %d", noticesMax)},
	{"the leader does not see that a job is armed or not", "SELECT job FROM job_state JOIN jobs ON id = job WHERE fires <> armed"},
	{"next lies behind fired", "SELECT job FROM job_state JOIN jobs ON id = job WHERE next <= fired AND next > 0 AND armed"},
	{"an execution has an outcome if it is finished, and only then", "SELECT id FROM executions WHERE (finished = 0) <> (outcome = '')"},
	{"an execution and a pending row have a job", "SELECT id FROM executions WHERE job NOT IN (SELECT id FROM jobs) UNION ALL SELECT id FROM pending WHERE job NOT IN (SELECT id FROM jobs WHERE deleted = 0)"},
	{"an attempt of a slot exists once", "SELECT min(id) FROM executions GROUP BY grp, slot, attempt HAVING count(*) > 1"},
	{"a tick has one outcome, unless a wrong clock was set back in between", "SELECT min(job) FROM (SELECT id, job, due FROM executions WHERE cause = 'tick' AND id = grp UNION ALL SELECT id, job, due FROM ticks WHERE cause = 'tick') t GROUP BY job, due, (SELECT count(*) FROM ticks c WHERE c.job = t.job AND c.cause = 'clock' AND c.id < t.id) HAVING count(*) > 1"},
	{"a calendar is there", "SELECT jobs.id FROM jobs, json_each(doc, '$.skip_on') WHERE deleted = 0 AND value NOT IN (SELECT name FROM rules WHERE kind = 'calendar')"},
	{"an output has an execution", "SELECT execution FROM outputs WHERE execution NOT IN (SELECT id FROM executions)"},
	{"a parent is there", "SELECT id FROM jobs WHERE deleted = 0 AND parent_job <> '' AND parent_job NOT IN (SELECT name FROM jobs WHERE deleted = 0)"},
	{"the log reaches from its base to beyond what is applied", "SELECT applied_index FROM cluster, server WHERE applied_index < base_index OR base_index + (SELECT count(*) FROM log) < applied_index OR (SELECT min(idx) FROM log) <> base_index + 1"},
}

// told are the notices that wait, as "event job: receiver", and drops them.
func (g *stage) told() (list []string) {
	g.t.Helper()
	rows, err := g.s.notices(0, noticesMax)
	if err != nil {
		g.t.Fatal(err)
	}
	t := deliveries{}
	for _, row := range rows {
		var n notice
		if err := json.Unmarshal([]byte(row.Doc), &n); err != nil {
			g.t.Error(err)
		}
		text := fmt.Sprintf("%s %s: %s", row.Event, n.Job, row.Receiver)
		if n.Count > 0 {
			text = fmt.Sprintf("%s %s %d: %s", row.Event, n.Job, n.Count, row.Receiver)
		}
		list, t.Taken = append(list, text), append(t.Taken, row.ID)
	}
	g.do(&command{Delivered: &t})
	return list
}

func (g *stage) wantTold(want ...string) {
	g.t.Helper()
	if diff := cmp.Diff(want, g.told(), cmpopts.EquateEmpty()); diff != "" {
		g.t.Errorf("notices (-want +got):\n%s", diff)
	}
}

// TestApply_Notices: the command that records what happened makes the notices of it: a failure is told when its group is
// over, and not again before the job has recovered, except to those who want that; what neither failed nor ran well is
// neither.
func TestApply_Notices(t *testing.T) {
	all := []string{eventFailed, eventRecovered, eventMissed, eventLost}
	own := []notifyRule{{On: []string{eventFailed}, Webhook: "http://own", Every: true}}
	g := newStage(t, job{Name: "a", Retries: 1, Notify: own}, job{Name: "b"}, job{Name: "c", Concurrency: concurrencyForbid})
	g.listeners = map[string][]string{}
	for _, e := range all {
		g.listeners[e] = []string{receiverNotify}
	}
	retry := func() int64 { return g.runPending(target{"n1", 7}).Started[0][0] }

	g.end(outcomeFailed, g.tick("a", "n1")...)
	g.wantTold() // a retry follows
	g.end(outcomeFailed, retry())
	g.wantTold("failed a: notify-webhook", "failed a: webhook http://own")
	g.end(outcomeFailed, g.tick("a", "n1")...)
	g.end(outcomeInterrupted, retry())
	g.wantTold("failed a: webhook http://own")
	g.end(outcomeKilled, g.tick("a", "n1")...)
	g.lose(g.tick("a", "n1")...)
	g.wantTold("lost a: notify-webhook")
	g.end(outcomeFailed, g.tick("a", "n1")...)
	g.end(outcomeSuccess, retry())
	g.wantTold("recovered a: notify-webhook")
	g.end(outcomeSuccess, g.tick("a", "n1")...)
	g.wantTold()
	g.end(outcomeFailed, g.tick("a", "n1")...)
	g.runPending() // the retry does not run
	g.wantTold("failed a: notify-webhook", "failed a: webhook http://own")

	row := g.row("a")
	g.do(&command{Put: []jobPut{{Base: row.version, Job: row.job, Next: row.next}}}) // its ticks are planned anew
	g.end(outcomeFailed, g.tick("a", "n1")...)
	g.end(outcomeFailed, retry())
	g.wantTold("failed a: webhook http://own")
	row = g.row("a")
	g.do(&command{Put: []jobPut{{Base: row.version, Job: row.job, Next: row.next}}})
	g.end(outcomeSuccess, g.tick("a", "n1")...)
	g.wantTold("recovered a: notify-webhook")

	two := g.tick("b", "n1", "n2")
	g.end(outcomeFailed, two[0])
	g.wantTold() // the group is not over
	g.end(outcomeSuccess, two[1])
	g.wantTold("failed b: notify-webhook")

	next := func(d decision) decision {
		row := g.row("c")
		d.Job, d.Rev, d.Due, d.Next = row.version.ID, row.version.Rev, row.next, row.next+int64(time.Hour)
		return d
	}
	missed := next(decision{Outcome: outcomeMissed, Count: 7, Event: eventMissed})
	older := missed
	older.Due, older.Next, older.Count, older.Outcome = missed.Next, missed.Next+1, 2, outcomeSkipped
	late := decision{Job: missed.Job, Rev: missed.Rev, Due: older.Next, Next: older.Next + int64(time.Hour), Targets: []target{{"n1", 7}}}
	res := g.do(&command{Consume: []decision{missed, older, late}})
	g.wantTold("missed c 9: notify-webhook") // of one outage one
	g.do(&command{Consume: []decision{next(decision{Outcome: outcomeSkipped, Reason: "overlap"})}})
	g.wantTold()
	g.do(&command{Consume: []decision{next(decision{Outcome: outcomeMissed, Event: eventMissed})}})
	g.wantTold("missed c 1: notify-webhook") // another outage
	g.end(outcomeSuccess, res.Started[2]...)
	g.do(&command{Consume: []decision{next(decision{Outcome: outcomeSkipped, Event: eventMissed})}})
	g.wantTold("missed c 1: notify-webhook") // no node
	g.do(&command{Consume: []decision{next(decision{Outcome: outcomeSkipped, Event: eventMissed})}})
	g.wantTold() // still none
	g.end(outcomeMissed, g.tick("c", "n1")...)
	g.do(&command{Consume: []decision{next(decision{Outcome: outcomeSkipped, Event: eventMissed})}})
	g.wantTold("missed c: notify-webhook", "missed c 1: notify-webhook") // the order did not arrive; then no node, again
}

// TestApply_Occasions: a run is overdue once, a silence is told once until the next success, nodes fail and come back once
// each, and a day is told of whose ticks met runs that went on.
func TestApply_Occasions(t *testing.T) {
	g := newStage(t, job{Name: "a", MaxRuntime: "1m", MaxSilence: "1h", Concurrency: concurrencyForbid})
	g.listeners = map[string][]string{}
	for _, e := range slices.Concat(jobEvents[2:], clusterEvents) {
		g.listeners[e] = []string{receiverNotify}
	}
	s := &scheduler{store: g.s, courier: &courier{}, log: slog.New(slog.DiscardHandler), now: time.Now}
	look := func(now int64) {
		t.Helper()
		list, err := s.overdue(now)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) > 0 {
			g.do(&command{Now: now, Notice: list})
			g.do(&command{Now: now, Notice: list}) // by an earlier leader, too
		}
	}
	hour, minute := int64(time.Hour), int64(time.Minute)
	run := g.tick("a", "n1")
	look(stageNext + minute)
	g.wantTold()
	look(stageNext + minute + 1)
	g.wantTold("overdue a: notify-webhook")
	look(stageNext + minute + 2)
	g.wantTold()
	look(testStart + hour + 1)
	g.wantTold("overdue a: notify-webhook")
	look(testStart + 3*hour)
	g.wantTold()
	g.end(outcomeSuccess, run...)
	look(stageNext + 6)
	g.wantTold()
	look(stageNext + 6 + hour)
	g.wantTold("overdue a: notify-webhook")

	row := g.row("a")
	c := &command{Now: row.next}
	for n := range 10 {
		due := row.next + int64(n)*minute
		c.Consume = append(c.Consume, decision{Job: row.version.ID, Rev: row.version.Rev, Due: due, Next: due + minute, Targets: []target{{"n1", 7}}})
	}
	c.Consume[9].Next = row.next + nanosPerDay
	g.do(c) // one runs, and nine meet it
	g.wantTold()
	g.tick("a")
	g.wantTold("overrun a 9: notify-webhook")
	g.do(&command{Now: row.next + 2*nanosPerDay, Consume: []decision{{Job: row.version.ID, Rev: row.version.Rev, Due: g.row("a").next,
		Next: row.next + 2*nanosPerDay, Count: 4, Outcome: outcomeSkipped}}})
	g.tick("a")
	g.wantTold() // a fifth is not more than a fifth

	g.do(&command{Nodes: []nodeSeen{{Name: "n1"}, {Name: "n2"}}})
	g.do(&command{Nodes: []nodeSeen{{Name: "n1", Gone: true, Failed: true}, {Name: "n2", Gone: true}, {Name: "n3", Gone: true, Failed: true}}})
	g.do(&command{Nodes: []nodeSeen{{Name: "n1"}, {Name: "n2"}}})
	g.do(&command{Nodes: []nodeSeen{{Name: "n1", Tags: map[string]string{"a": "b"}}}})
	g.wantTold("node-failed : notify-webhook", "node-back : notify-webhook")
	if seen, err := g.s.nodesSeen(); err != nil || len(seen) != 2 {
		t.Errorf("nodes %v, %v, want two", seen, err)
	}
}

// TestApply_NoticesBound: of too many notices those of single runs are given up first, and what is given up is counted.
func TestApply_NoticesBound(t *testing.T) {
	g := newStage(t, job{Name: "a", Notify: []notifyRule{{On: []string{eventStart, eventFailed}, Webhook: "http://own", Every: true}}})
	g.end(outcomeFailed, g.tick("a", "n1")...)
	row := g.row("a")
	for n := 0; n < noticesMax+10; n += 1000 {
		c := &command{Now: testStart}
		for range 1000 {
			c.Consume = append(c.Consume, decision{Job: row.version.ID, Rev: row.version.Rev, Targets: []target{{"n1", 7}}})
		}
		g.do(c)
	}
	rows, err := g.s.notices(0, 2*noticesMax)
	if err != nil || len(rows) != noticesMax || rows[0].Event != eventFailed || g.s.settings.notices != len(rows) {
		t.Errorf("%d notices, %d counted, the first %+v, %v; want %d, the first of the failure", len(rows), g.s.settings.notices, rows[0], err, noticesMax)
	}
	if lost := g.row("a").NoticesLost; lost != 1002 {
		t.Errorf("%d notices are lost, want 1002", lost)
	}
	g.do(&command{Delivered: &deliveries{Taken: []int64{rows[0].ID}, Lost: []int64{rows[1].ID, rows[0].ID}}})
	if taken := g.s.stats.told.Load(); taken != 1 {
		t.Errorf("%d notices count as taken, want 1", taken)
	}
	if lost := g.row("a").NoticesLost; lost != 1003 {
		t.Errorf("%d notices are lost, want 1003", lost)
	}
}

// A server that is killed before it has written anything starts again.
func TestStore_KilledBeforeFirstWrite(t *testing.T) {
	dir, killed := t.TempDir(), t.TempDir()
	for range 2 { // the first makes the database
		s, err := openStore(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"belfry.db", "belfry.db-open", "belfry.db-wal"} {
			copyFile(t, filepath.Join(dir, name), filepath.Join(killed, name))
		}
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
		again, err := openStore(killed)
		if err != nil {
			t.Fatal(err)
		}
		if err := again.close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestApply_TrimFailures: executions without success do not leave with the others before they are a week old, as long as
// these are not too many; a job may say how many it keeps.
func TestApply_TrimFailures(t *testing.T) {
	g := newStage(t, job{Name: "a"}, job{Name: "b", Keep: 30})
	run := func(name string, list ...string) {
		for _, outcome := range list {
			g.end(outcome, g.tick(name, "n1")...)
		}
	}
	keep := retention{executions: 5, failures: 3, badFrom: stageNext, auditBytes: math.MaxInt64}
	want := func(name string, bad, all int) {
		t.Helper()
		for {
			tr, err := g.s.trimmable(keep, false)
			if err != nil {
				t.Fatal(err)
			}
			if tr.empty() {
				break
			}
			g.do(&command{Trim: &tr})
		}
		var gotBad, gotAll int
		err := g.s.view(`SELECT count(*) FILTER (WHERE outcome <> 'success'), count(*) FROM executions WHERE job = ?`,
			[]any{g.jobs[name].ID}, &gotBad, &gotAll)
		if err != nil || gotBad != bad || gotAll != all {
			t.Errorf("%s: %d executions are left, %d of them without success, %v; want %d and %d", name, gotAll, gotBad, err, all, bad)
		}
		if err := g.s.check(); err != nil {
			t.Error(err)
		}
	}
	good := slices.Repeat([]string{outcomeSuccess}, 20)
	run("a", outcomeFailed, outcomeFailed, outcomeInterrupted, outcomeFailed)
	run("a", good...)
	want("a", 3, 8)
	run("a", good[:9]...)
	want("a", 3, 17) // one by one they would cost too much
	run("a", good[:1]...)
	want("a", 3, 8)
	run("a", outcomeKilled)
	run("a", good...)
	want("a", 3, 8)
	keep.badFrom = stageNext + 1000
	run("a", good...)
	want("a", 0, 5)
	run("b", good...)
	run("b", good...)
	want("b", 0, 30)
}

// BenchmarkStore_bad lists a month of what failed, among a million executions of which one of a hundred did.
func BenchmarkStore_bad(b *testing.B) {
	s := newStore(b)
	fill(b, s, 10_000)
	fillExecutions(b, s, 100)
	err := s.update("NORMAL", func() error { return s.exec("UPDATE executions SET outcome = 'failed' WHERE id % 97 = 0") })
	if err != nil {
		b.Fatal(err)
	}
	var last int64
	if err := s.view("SELECT max(started) FROM executions", nil, &last); err != nil {
		b.Fatal(err)
	}
	for _, limit := range []int{50, recentMax} {
		b.Run(fmt.Sprint(limit, " of them"), func(b *testing.B) {
			for range b.N {
				f := executionFilter{from: last - 30*nanosPerDay, to: last + 1, outcome: "bad", limit: limit}
				list, err := s.recentExecutions(f)
				if err != nil || len(list) != limit {
					b.Fatal(len(list), err)
				}
			}
		})
	}
	b.Run("grouped by job", func(b *testing.B) {
		for range b.N {
			if list, err := s.failingJobs(last-30*nanosPerDay, last+1, nil, 100); err != nil || len(list) != 100 {
				b.Fatal(len(list), err)
			}
		}
	})
	b.Run("timeline", func(b *testing.B) {
		for range b.N {
			if list, _, err := s.lanes(last-nanosPerDay/24, last+1, int64(time.Minute), nil, 8); err != nil || len(list) == 0 {
				b.Fatal(len(list), err)
			}
		}
	})
}

// TestReader_Unreadable: however a read begins, callers learn that the database cannot be read.
func TestReader_Unreadable(t *testing.T) {
	var r reader
	if err := r.open(dsn(t.TempDir()+"/missing/belfry.db", "query_only(1)")); err != nil {
		t.Fatal(err)
	}
	defer r.close()
	_, err := r.countJobs()
	atOnce := r.atOnce(func(r *reader) error {
		_, err := r.countJobs()
		return err
	})
	if !errors.Is(err, errUnreadable) || !errors.Is(atOnce, errUnreadable) {
		t.Errorf("reading a missing file: %v, and in one state: %v; want %v", err, atOnce, errUnreadable)
	}
}

// TestStore_RecentBound: a filter by node or owner looks at no more than the newest executions, whatever it finds; one
// by job finds its executions by an index, however old they are.
func TestStore_RecentBound(t *testing.T) {
	s := mustOpen(t, t.TempDir())
	defer s.close()
	fill(t, s, 2)
	fillExecutions(t, s, recentScanMax+1)
	err := s.update("NORMAL", func() error {
		const rare = " FROM executions WHERE job = (SELECT min(id) FROM jobs)"
		return inOrder(func() error { return s.exec("UPDATE executions SET id = id >> 20") }, // as the log would
			func() error { return s.exec("DELETE" + rare + " AND id > (SELECT min(id)" + rare + ")") },
			func() error {
				return s.exec("UPDATE executions SET node = 'n2' WHERE id = (SELECT min(id)" + rare + ")")
			})
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, outcome := range []string{"", outcomeSuccess} {
		f := executionFilter{to: math.MaxInt64, outcome: outcome, limit: 1}
		byNode, byJob := f, f
		byNode.node, byJob.job = "n2", "job-000000"
		nodes, err1 := s.recentExecutions(byNode)
		jobs, err2 := s.recentExecutions(byJob)
		if len(nodes) != 0 || len(jobs) != 1 || err1 != nil || err2 != nil {
			t.Errorf("outcome %q: %d by node, %v, and %d by job, %v; want 0 and 1",
				outcome, len(nodes), err1, len(jobs), err2)
		}
	}
}
