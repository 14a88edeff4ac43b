package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
	if err := s.persist(nil, entries); err != nil {
		t.Fatal(err)
	}
	results, err := s.applyUpTo(math.MaxUint64)
	if err != nil {
		t.Fatal(err)
	}
	return results
}

var testStart = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixNano()

// fill puts n jobs into the store and returns their versions.
func fill(t testing.TB, s *store, n int) []jobVersion {
	t.Helper()
	var commands []*command
	for i := range n {
		commands = append(commands, &command{Now: testStart, Request: fmt.Sprint("fill ", i), Put: []jobPut{{
			Job:  job{Name: fmt.Sprintf("job-%06d", i), Schedule: "0 0 0 1 1 *", Executor: "http", ExecutorConfig: map[string]string{"method": "GET", "url": "http://127.0.0.1/"}, Metadata: map[string]string{"team": fmt.Sprint("t", i%7)}},
			Next: testStart + int64(i)}}})
	}
	var versions []jobVersion
	for _, r := range commit(t, s, commands...) {
		versions = append(versions, jobVersion{r.Jobs[0], int64(r.Index)})
	}
	return versions
}

func BenchmarkStore_page(b *testing.B) {
	s := newStore(b)
	fill(b, s, 10_000)
	b.ResetTimer()
	for i := range b.N {
		start := i * 7919 % 9950
		rows, _, err := s.jobs(jobFilter{}, start, start+50)
		if err != nil || len(rows) != 50 {
			b.Fatal(len(rows), err)
		}
	}
}

func BenchmarkStore_put(b *testing.B) {
	s := newStore(b)
	fill(b, s, b.N)
}

// writeNewerStore makes a database that a later version has written.
func writeNewerStore(t testing.TB, dir string) {
	t.Helper()
	s, err := openStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.exec(fmt.Sprintf("PRAGMA user_version = %d", len(migrations)+1)), s.close()); err != nil {
		t.Fatal(err)
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
	rows, n, err := l.s.jobs(jobFilter{}, 0, 100)
	if err != nil {
		l.t.Fatal(err)
	}
	if n == 0 {
		return &jobRow{version: jobVersion{ID: 1, Rev: 1}, Name: "none"}
	}
	return rows[l.rnd.IntN(len(rows))]
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
	c := &command{Actor: actorScheduler, Now: l.now}
	if l.rnd.IntN(3) == 0 {
		c.Request, c.Answer = fmt.Sprint("request ", l.rnd.IntN(l.n)), "{}"
	}
	row := l.job()
	switch l.rnd.IntN(12) {
	case 0, 1:
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
				d.Outcome, d.Reason, d.Until, d.Count = pick(l.rnd, outcomeSkipped, outcomeMissed), "why", due+1, 2
			}
			if l.rnd.IntN(10) == 0 {
				d.Next = never
			}
			c.Decide, due = append(c.Decide, d), d.Next
		}
	case 7:
		c.Run = l.runs(row)
	case 8, 9:
		l.ends(c)
	case 10:
		fired := row.fired
		c.Reset = []reset{{Job: row.version.ID, Rev: row.version.Rev, Fired: fired, Next: l.now + int64(time.Minute), Reason: "a wrong clock"}}
	case 11:
		t, _, err := l.s.trimmable(3, l.now/nanosPerDay-1)
		if err != nil {
			l.t.Fatal(err)
		}
		t.Requests = int64(l.rnd.IntN(l.n))
		c.Trim = &t
	}
	return c
}

func (l *randomLog) put() jobPut {
	name := fmt.Sprint("job-", l.rnd.IntN(8))
	p := jobPut{Next: l.now + l.rnd.Int64N(int64(time.Hour)), Job: job{Name: name, Schedule: "@every 1m", Metadata: map[string]string{"b": fmt.Sprint(l.n), "a": "x"},
		Retries: uint(l.rnd.IntN(3)), Concurrency: pick(l.rnd, concurrencyAllow, concurrencyForbid), Ephemeral: l.rnd.IntN(8) == 0, Disabled: l.rnd.IntN(8) == 0}}
	if l.rnd.IntN(5) == 0 {
		p.Job.ParentJob = fmt.Sprint("job-", l.rnd.IntN(8))
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

func (l *randomLog) runs(row *jobRow) []runDecision {
	rows, err := l.s.pending(0)
	if err != nil {
		l.t.Fatal(err)
	}
	list := []runDecision{{Job: row.version.ID, Rev: row.version.Rev, Targets: l.targets()}}
	if len(rows) > 0 {
		list = nil
	}
	for _, p := range rows {
		jobs, err := l.s.jobsByID([]int64{p.JobID})
		if err != nil || len(jobs) == 0 {
			l.t.Fatal(jobs, err)
		}
		d := runDecision{Pending: p.ID, Job: p.JobID, Rev: jobs[0].version.Rev - int64(l.rnd.IntN(8)/7), Targets: []target{{"n0", 7}}}
		if l.rnd.IntN(3) == 0 {
			d.Targets, d.Outcome, d.Reason = nil, outcomeSkipped, "why"
		}
		if list = append(list, d); l.rnd.IntN(4) == 0 {
			list = append(list, d) // it is decided twice
		}
	}
	return list
}

func (l *randomLog) ends(c *command) {
	rows, err := l.s.collectExecutions(0, "WHERE e.finished = 0 OR e.outcome = 'lost' ORDER BY e.id")
	if err != nil {
		l.t.Fatal(err)
	}
	for _, e := range rows {
		switch l.rnd.IntN(4) {
		case 0:
		case 1:
			c.Close = append(c.Close, closing{e.ID, 7 + uint64(l.rnd.IntN(4)/3), pick(l.rnd, outcomeLost, outcomeInterrupted, outcomeMissed), "why"})
		default:
			c.Done = append(c.Done, report{Execution: e.ID, Started: e.Started, Finished: l.now, Outcome: pick(l.rnd, outcomeSuccess, outcomeFailed), Dropped: 3, output: []byte("out\x00put")})
		}
	}
	if c.Done != nil {
		c.Close = nil
	}
}

// TestStore_RandomLog: whatever the log holds, the invariants hold after each
// command, and every server that applies it, from the start, behind a snapshot,
// in one transaction or in many, has the same state.
func TestStore_RandomLog(t *testing.T) {
	seed := randomSeed(t)
	for i := range uint64(*storeLogs) {
		s, other := mustOpen(t, simTempDir(t)), mustOpen(t, simTempDir(t))
		l := newRandomLog(t, s, seed+i)
		half := 20 + l.rnd.IntN(60)
		var rest []entry
		var behind *store
		commit(t, s, &command{Now: testStart, Found: &founding{ID: "cluster", Timezone: "UTC"}})
		for n := range 120 {
			last := commit(t, s, l.next())[0]
			if n%10 == 0 {
				if err := s.check(); err != nil {
					t.Fatalf("seed %d, log entry %d: %v", seed+i, last.Index, err)
				}
			}
			if n == half {
				dir := simTempDir(t)
				if err := s.snapshot(filepath.Join(dir, "belfry.db")); err != nil {
					t.Fatal(err)
				}
				behind = mustOpen(t, dir)
			}
		}
		log, err := s.entries(1, 1<<40)
		if err != nil {
			t.Fatal(err)
		}
		rest = log[behind.applied:]
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
	if _, err := torn.apply(2); err != nil {
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
			return full(s, func() error { _, err := s.apply(e.Index); return err })
		}, 5, 6},
		{"ApplyReportedFailed", func(s *store, e entry) error {
			_, err := s.apply(e.Index)
			return errors.Join(s.persist(nil, []entry{e}), err, func() error { _, err := s.apply(e.Index); return err }(), io.ErrUnexpectedEOF)
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
			if _, n, err := s.jobs(jobFilter{}, 0, 10); n != 6 || err != nil {
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
	id, err := s.nodeID()
	if err != nil {
		t.Fatal(err)
	}
	lead := func(ctx context.Context, _ uint64) error { <-ctx.Done(); return nil }
	c, err := newCluster(server{"n1", id}, s, slog.New(slog.DiscardHandler), lead)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.run(t.Context()) }()
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
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, dir, want string }{
		{"Locked", filepath.Dir(locked.path), errLocked.Error()},
		{"Newer", newer, errNewer.Error()},
		{"ReadOnly", readOnlyDir(t), "cannot write there, choose a directory that this user may write"},
		{"Garbage", garbage, "cannot read the database"},
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
	if _, err := s.apply(2); !errors.Is(err, errUnknownEntry) {
		t.Errorf("apply of a later format: %v, want %v", err, errUnknownEntry)
	}
	if diff := cmp.Diff(before, mustDump(t, s)); diff != "" {
		t.Errorf("state behind it (-want +got):\n%s", diff)
	}
}

// FuzzDecodeCommand: no entry, however torn, makes decodeCommand panic or take
// more than it was given; what it accepts comes back from encode as it was.
func FuzzDecodeCommand(f *testing.F) {
	for _, c := range []*command{
		{Actor: "anonymous", Now: 1, Put: []jobPut{{Job: job{Name: "a", Tags: map[string]string{"b": "c"}}}}},
		{Done: []report{{Execution: 1, Outcome: "success", output: []byte("one")}, {Execution: 2, output: []byte("two")}}},
		{Decide: []decision{{Job: 1, Targets: []target{{"n", math.MaxUint64}}}}},
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
