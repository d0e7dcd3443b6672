// graphile_worker.mjs: graphile-worker, measured beside pg_accord. The server is that of PGHOST and PGPORT.
//
//   node graphile_worker.mjs setup       makes its schema
//   node graphile_worker.mjs work URL    posts every job's payload there; prints "ready", ends with a signal
//
// Its settings are those that its documentation names for speed (a local queue of 500, completions batched); jobs at a
// time as many as the dispatcher has requests.
import { Logger, run, runMigrations } from 'graphile-worker'
import { poster } from './post.mjs'

const logger = new Logger(() => (level, message) => { if (level === 'error') console.error(message) })
const connectionString = `postgres:///postgres?host=${process.env.PGHOST}&port=${process.env.PGPORT}&user=postgres`
const [command, url] = process.argv.slice(2)

if (command === 'setup') {
  await runMigrations({ connectionString, logger })
} else {
  const post = poster(url)
  await run({
    logger,
    taskList: { post: (payload, helpers) => post(payload, helpers.job.id) },
    preset: {
      worker: {
        connectionString,
        concurrentJobs: 64,
        maxPoolSize: 10,
        localQueue: { size: 500 },
        completeJobBatchDelay: 0,
        failJobBatchDelay: 0
      }
    }
  })
  console.log('ready')
}
